"""The gain maths, the story's table and what it claims, on rewards that are made up."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from examples.gains import Gains, Row, against, conclusion, gains_table, measure_gains

OBJECTIVES = ("positive", "concise", "polite")
NUM_PROMPTS, NUM_RESPONSES = 64, 8
ALONE = {
    "reference": (0.0, 0.4, 0.0),
    "positive": (0.7, 0.3, 0.0),
    "concise": (0.0, 0.8, -0.2),
    "polite": (0.1, 0.2, 0.8),
}


def row(name: str, means: tuple[float, ...], *, noise: float = 0.3, seed: int = 0) -> Row:
    """Rewards with exactly these means, prompts and responses apart from each other."""
    rng = np.random.default_rng(seed)
    rewards_PJO = rng.normal(0, noise, (NUM_PROMPTS, NUM_RESPONSES, len(means)))
    rewards_PJO += np.array(means) - rewards_PJO.mean(axis=(0, 1))
    weights = None if name in ALONE else (0.2, 0.5, 0.3)
    return Row(name=name, weights=weights, rewards_PJO=rewards_PJO, num_words=21.4)


def gains(others: Mapping[str, tuple[float, ...]], *, noise: float = 0.3) -> Gains:
    rows = {**ALONE, **others}
    return measure_gains(
        [
            row(name, means, noise=noise, seed=seed)
            for seed, (name, means) in enumerate(rows.items())
        ],
        OBJECTIVES,
    )


def test_gains_are_shares_of_the_way_from_the_reference_to_the_own_policy() -> None:
    found = gains({"mixture": (0.35, 0.5, 0.2)})
    assert np.allclose(found.gains_RO[found.index("reference")], 0)
    for index, name in enumerate(OBJECTIVES):
        assert found.gains_RO[found.index(name), index] == pytest.approx(1)
    mixture = found.index("mixture")
    assert np.allclose(found.gains_RO[mixture], [0.5, 0.25, 0.25])
    assert found.smallest_R[mixture] == pytest.approx(0.25)
    assert found.smallest_R[found.index("polite")] == pytest.approx(-0.5)


def test_gains_do_not_depend_on_the_rewards_scale_and_offset() -> None:
    rows = [row(name, means, seed=seed) for seed, (name, means) in enumerate(ALONE.items())]
    scaled = [
        Row(
            name=one.name,
            weights=None,
            rewards_PJO=one.rewards_PJO * np.array([3.0, 0.1, 7.0]) + np.array([1.0, -2.0, 0.5]),
            num_words=1.0,
        )
        for one in rows
    ]
    plain, other = measure_gains(rows, OBJECTIVES), measure_gains(scaled, OBJECTIVES)
    assert np.allclose(plain.gains_RO, other.gains_RO)
    assert np.allclose(plain.gains_BRO, other.gains_BRO)


def test_intervals_cover_the_truth_at_their_rate() -> None:
    """The mean reward's interval from prompts of independent noise: 95 % within a few per cent."""
    hits = 0
    for seed in range(50):
        rng = np.random.default_rng(seed)
        rows = [
            Row(
                name=name,
                weights=None,
                rewards_PJO=np.array(means) + rng.normal(0, 0.3, (NUM_PROMPTS, 1, 3)),
                num_words=1.0,
            )
            for name, means in ALONE.items()
        ]
        found = measure_gains(rows, OBJECTIVES)
        low, high = np.quantile(found.rewards_BRO[:, 1, 0], [0.025, 0.975])
        hits += low <= ALONE["positive"][0] <= high
    assert hits >= 43


def test_errors_of_differences_keep_what_rows_share() -> None:
    """Two rows that differ by a constant differ for certain, however noisy both are."""
    base = row("mixture", (0.35, 0.5, 0.2), noise=2.0)
    better = Row(name="better", weights=None, rewards_PJO=base.rewards_PJO + 0.01, num_words=1.0)
    rows = [*(row(name, means, seed=7) for name, means in ALONE.items()), base, better]
    found = measure_gains(rows, OBJECTIVES)
    difference, error = found.reward_lead(5, 4, 0)
    assert difference == pytest.approx(0.01)
    assert error < 1e-12


def test_a_policy_that_does_not_raise_its_objective_is_refused() -> None:
    with pytest.raises(ValueError, match="'polite' is no better at its own objective"):
        gains({"polite": (0.0, 0.4, -0.1)})


def test_conclusion_claims_only_what_is_beyond_two_standard_errors() -> None:
    text = conclusion(
        gains({"mixture": (0.35, 0.5, 0.2), "uniform": (0.35, 0.501, 0.2), "top": (0.6, 0.7, 0.6)}),
        "mixture",
    )
    parts = {line.split(":")[0].strip(): line for line in text.replace("\n    ", " ").splitlines()}
    assert "reference" in parts["Ahead"]
    assert "polite" in parts["Ahead"]
    assert "top" in parts["Behind"]
    assert "uniform" in parts["No difference beyond noise"]
    assert "uniform" not in parts["Ahead"] + parts["Behind"]
    against = parts["Mean rewards against 'reference'"]
    assert "ahead in positive, concise, polite" in against
    assert "no difference beyond noise in positive, concise, polite" in text


def test_pairs_are_starred_only_beyond_two_standard_errors() -> None:
    found = gains({"low": (0.1, 0.42, 0.1), "high": (0.6, 0.7, 0.6), "same": (0.6, 0.7, 0.601)})
    text = against(found, [("high", "low"), ("same", "high")], "Difference")
    high, same = text.removeprefix("Difference: ").split(", ", 1)
    assert high.startswith("high +0.7")
    assert high.endswith("*")
    assert "*" not in same.split("(*")[0]


def test_table_is_aligned_and_narrow() -> None:
    found = gains({"uniform": (0.35, 0.5, 0.2), "fitted reference": (-0.1, 0.5, 0.2)})
    lines = gains_table(found).splitlines()
    assert max(map(len, lines)) <= 90
    assert [line[:17].strip() for line in lines[2:]] == [one.name for one in found.rows]
    assert len({len(line) for line in lines[1:]}) == 1
    assert max(map(len, conclusion(found, "uniform").splitlines())) <= 90


def test_a_soup_is_the_average_of_its_checkpoints(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    from examples.soup import PARAMETERS, write_soup

    generator = torch.Generator().manual_seed(0)
    folders = []
    for index in range(3):
        folder = tmp_path / str(index)
        folder.mkdir()
        tensor = torch.randn(8, 4, generator=generator).bfloat16()
        safetensors.save_file({"a": tensor}, folder / PARAMETERS)
        (folder / "config.json").write_text("{}")
        (folder / "README.md").write_text("a card of one policy")
        folders.append(folder)
    shares = dict(zip(folders, (0.2, 0.5, 0.3), strict=True))
    soup = write_soup(tmp_path / "soup", shares)
    stored = [safetensors.load_file(folder / PARAMETERS)["a"].double() for folder in folders]
    expected = sum(share * tensor for share, tensor in zip(shares.values(), stored, strict=True))
    average = safetensors.load_file(soup / PARAMETERS)["a"]
    assert average.dtype == torch.bfloat16
    assert (average.double() - expected).abs().max() <= 2**-8 * expected.abs().max()
    assert {path.name for path in soup.iterdir()} == {PARAMETERS, "config.json"}
    alone = write_soup(tmp_path / "alone", {folders[1]: 1.0})
    assert torch.equal(safetensors.load_file(alone / PARAMETERS)["a"].double(), stored[1])
    safetensors.save_file({"a": torch.zeros(2, 2)}, folders[2] / PARAMETERS)
    with pytest.raises(ValueError, match="differ in their tensors"):
        write_soup(tmp_path / "bad", shares)
