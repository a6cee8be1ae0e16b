"""The gains, the story's table and its claims are right, on made-up rewards."""

from collections.abc import Mapping

import numpy as np
import pytest

from examples.gains import Gains, against, conclusion, gains_table, measure_gains
from prefmix.weights.evaluation.evaluation import Evaluation
from prefmix.weights.evaluation.weighting import Weighting
from prefmix.weights.fit.sequence_level.objective import Floats

OBJECTIVES = ("positive", "concise", "polite")
NUM_PROMPTS, NUM_RESPONSES = 64, 8
ALONE = {
    "reference": (0.0, 0.4, 0.0),
    "positive": (0.7, 0.3, 0.0),
    "concise": (0.0, 0.8, -0.2),
    "polite": (0.1, 0.2, 0.8),
}


def row(means: tuple[float, ...], *, noise: float = 0.3, seed: int = 0) -> Floats:
    """Rewards with exactly these means, prompts and responses apart from each other."""
    rng = np.random.default_rng(seed)
    rewards_PJO: Floats = rng.normal(0, noise, (NUM_PROMPTS, NUM_RESPONSES, len(means)))
    rewards_PJO += np.array(means) - rewards_PJO.mean(axis=(0, 1))
    return rewards_PJO


def measured(rewards: Mapping[str, Floats]) -> Evaluation:
    """An evaluation whose rows have these rewards; rows that are no single policy are mixtures."""
    mixed = dict(zip(OBJECTIVES, (0.2, 0.5, 0.3), strict=True))
    return Evaluation(
        rows=tuple(
            Weighting(name=name, weights={name: 1.0} if name in ALONE else mixed)
            for name in rewards
        ),
        objectives=OBJECTIVES,
        members=(),
        rewards_RPJO=np.stack(list(rewards.values())),
        kl_RPM=np.zeros((len(rewards), len(next(iter(rewards.values()))), 0)),
        tokens_R=np.full(len(rewards), 21.4),
        reference="reference",
    )


def gains(others: Mapping[str, tuple[float, ...]], *, noise: float = 0.3) -> Gains:
    rows = enumerate({**ALONE, **others}.items())
    return measure_gains(
        measured({name: row(means, noise=noise, seed=seed) for seed, (name, means) in rows})
    )


def test_gains_are_shares_of_the_way_from_the_reference_to_the_own_policy() -> None:
    found = gains({"mixture": (0.35, 0.5, 0.2)})
    assert np.allclose(found.gains_RO[found.index("reference")], 0)
    for index, name in enumerate(OBJECTIVES):
        assert found.gains_RO[found.index(name), index] == pytest.approx(1)
    mixture = found.index("mixture")
    assert np.allclose(found.gains_RO[mixture], [0.5, 0.25, 0.25])
    assert found.smallest_R[mixture][0] == pytest.approx(0.25)
    assert found.smallest_R[found.index("polite")][0] == pytest.approx(-0.5)


def test_gains_do_not_depend_on_the_rewards_scale_and_offset() -> None:
    rows = {name: row(means, seed=seed) for seed, (name, means) in enumerate(ALONE.items())}
    scale, offset = np.array([3.0, 0.1, 7.0]), np.array([1.0, -2.0, 0.5])
    plain = measure_gains(measured(rows))
    other = measure_gains(measured({name: one * scale + offset for name, one in rows.items()}))
    assert np.allclose(plain.gains_RPO, other.gains_RPO)


def test_intervals_hold_the_truth_where_gains_are_equal() -> None:
    """Scales, row and rival come from prompts of independent noise."""
    truth = {**ALONE, "mixture": (0.35, 0.6, 0.4), "rival": (0.28, 0.56, 0.32)}
    hits = {"smallest": 0, "lead": 0, "mean": 0}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        noisy = {
            name: np.array(means) + rng.normal(0, 0.4, (NUM_PROMPTS, 1, 3))
            for name, means in truth.items()
        }
        found = measure_gains(measured(noisy))
        mixture, rival = found.index("mixture"), found.index("rival")
        for name, (_, (low, high)), true in (
            ("smallest", found.smallest_R[mixture], 0.5),
            ("lead", found.lead(mixture, rival), 0.1),
            ("mean", found.mean_R[mixture], 0.5),
        ):
            hits[name] += low <= true <= high
    assert min(hits.values()) >= 36, hits


def test_differences_keep_what_rows_share() -> None:
    """Two rows that differ by a constant differ for certain, however noisy both are."""
    base = row((0.35, 0.5, 0.2), noise=2.0)
    alone = {name: row(means, noise=1e-6, seed=7) for name, means in ALONE.items()}
    found = measure_gains(measured({**alone, "mixture": base, "better": base + 0.07}))
    value, (low, high) = found.mean_lead(5, 4)
    assert value == pytest.approx((0.07 / 0.7 + 0.07 / 0.4 + 0.07 / 0.8) / 3)
    assert high - low < 1e-4


def test_a_policy_that_does_not_raise_its_objective_is_refused() -> None:
    with pytest.raises(ValueError, match="'polite' is no better at its own objective"):
        gains({"polite": (0.0, 0.4, -0.1)})


def test_conclusion_claims_only_what_the_intervals_show() -> None:
    text = conclusion(
        gains({"mixture": (0.35, 0.5, 0.2), "uniform": (0.35, 0.501, 0.2), "top": (0.6, 0.7, 0.6)}),
        "mixture",
    )
    parts = {line.split(":")[0].strip(): line for line in text.replace("\n    ", " ").splitlines()}
    assert "reference" in parts["Ahead"]
    assert "polite" in parts["Ahead"]
    assert "top" in parts["Behind"]
    assert "uniform" in parts["Not shown to differ"]
    assert "uniform" not in parts["Ahead"] + parts["Behind"]


def test_pairs_are_starred_where_the_interval_does_not_hold_zero() -> None:
    found = gains({"low": (0.1, 0.42, 0.1), "high": (0.6, 0.7, 0.6), "same": (0.6, 0.7, 0.601)})
    text = against(found, [("high", "low"), ("same", "high")], "Difference")
    high, same = text.splitlines()[1:]
    assert high.startswith("  high less low: smallest +0.7")
    assert high.count("*") == 2
    assert "*" not in same


def test_table_is_aligned_and_narrow() -> None:
    found = gains({"uniform": (0.35, 0.5, 0.2), "max-min, parameters": (-0.1, 0.5, 0.2)})
    lines = gains_table(found).splitlines()
    assert max(map(len, lines)) <= 100
    assert [line[:20].strip() for line in lines[2:]] == found.names
    assert len({len(line) for line in lines[1:]}) == 1
    assert max(map(len, conclusion(found, "uniform").splitlines())) <= 90
