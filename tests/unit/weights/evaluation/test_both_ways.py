"""Rows of equal weights: their differences, and how sure they are."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prefmix.weights.evaluation import both_ways
from prefmix.weights.evaluation.evaluation import Evaluation
from prefmix.weights.evaluation.verdict import verdict
from prefmix.weights.evaluation.weighting import Weighting
from prefmix.weights.report.evaluation_report import write_evaluation_report

EVEN, OTHER = {"p": 0.5, "q": 0.5}, {"p": 0.25, "q": 0.75}
ROWS = (
    Weighting(name="p", weights={"p": 1.0}),
    Weighting(name="q", weights={"q": 1.0}),
    Weighting(name="even", weights=EVEN),
    Weighting(name="even, parameters", weights=EVEN, mixing="parameters"),
    Weighting(name="other", weights=OTHER, of_grid=True),
    Weighting(name="other, parameters", weights=OTHER, mixing="parameters", of_grid=True),
)


def _found(lead: float, *, noise: float = 1.0, num_prompts: int = 60) -> Evaluation:
    """Answers whose prompts differ much; mixed logits are ahead in the first objective."""
    rng = np.random.default_rng(0)
    rewards = 10 * rng.normal(size=(1, num_prompts, 1, 2))
    rewards = rewards + noise * rng.normal(size=(len(ROWS), num_prompts, 4, 2))
    rewards[2, :, :, 0] += lead
    kl_RPM = np.arange(len(ROWS) * 2, dtype=float).reshape(len(ROWS), 1, 2)
    return Evaluation(
        rows=ROWS,
        objectives=("a", "b"),
        members=("p", "q"),
        rewards_RPJO=rewards,
        kl_RPM=np.repeat(kl_RPM, num_prompts, axis=1),
        tokens_R=np.full(len(ROWS), 20.0),
    )


def test_rows_of_equal_weights_are_compared_prompt_by_prompt() -> None:
    """The spread that prompts have in common, ten times as large, is no part of the intervals."""
    even, other = both_ways.pairs(_found(0.5))
    assert (even.first, even.second, other.first, other.second) == (2, 3, 4, 5)
    value, low, high = even.rewards[0]
    assert low < 0.5 < high
    assert high - low == pytest.approx(2 * 2.0 * (2 / 240) ** 0.5, rel=0.25)
    assert even.differs
    assert value == pytest.approx((low + high) / 2)
    assert (other.of_grid, even.of_grid) == (True, False)


def test_intervals_of_equal_ways_cover_nothing() -> None:
    """Over 40 draws of two equal ways, about one in twenty intervals misses 0."""
    misses = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        rewards = rng.normal(size=(len(ROWS), 50, 4, 2))
        found = _found(0.0)
        even, _ = both_ways.pairs(
            Evaluation(
                rows=ROWS,
                objectives=("a", "b"),
                members=(),
                rewards_RPJO=rewards,
                kl_RPM=found.kl_RPM[:, :50, :0],
                tokens_R=found.tokens_R,
            )
        )
        misses += sum(low > 0 or high < 0 for _, low, high in even.rewards)
    assert misses <= 10


def test_table_verdict_numbers_and_report_show_the_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefmix.weights.report.plots._DPI", 40)
    found = _found(2.0)
    heading, even, other = both_ways.cells(found)
    assert heading[:3] == ["logits less parameters", "a, difference", "b, difference"]
    assert (even[0], even[-2:]) == ("even", ["5.00", "7.00"])
    assert even[1] == "+2.141 ± 0.197"
    assert other[0] == "other"
    first, _ = both_ways.to_dicts(found)["both_ways"]
    assert (first["logits"], first["parameters"]) == ("even", "even, parameters")
    sentences = "\n".join(verdict(found))
    assert "Mixture minus the parameter average at the same weights: even +" in sentences
    assert "of 2 pairs a mean reward differs; each of the intervals has its own" in sentences
    page = write_evaluation_report(found, tmp_path, title="T", provenance={})
    assert "logits less parameters" in page.read_text(encoding="utf-8")


def test_numbers_have_their_uncertainties() -> None:
    rows = _found(0.0).to_dict()["rows"]
    assert isinstance(rows, list)
    for row in rows:
        assert len(row["reward_errors"]) == len(row["win_rate_intervals"]) == 2
        for (low, high), rate in zip(row["win_rate_intervals"], row["win_rates"], strict=True):
            assert low <= rate <= high
        for (low, high), kl in zip(row["kl_intervals"], row["kl"], strict=True):
            assert low == pytest.approx(kl) == high  # every prompt has the same
    assert [row["mixing"] for row in rows] == ["logits"] * 3 + [
        "parameters",
        "logits",
        "parameters",
    ]


@pytest.mark.parametrize(
    ("nats", "advice"),
    [
        (both_ways.ALIKE * 20, "mixed parameters, at the cost of one policy, serve as well"),
        (both_ways.ALIKE * 21, "between 1.6 and 8.5 it depends: compare both ways"),
        (both_ways.APART * 20, "mixed logits had the higher smallest win rate"),
    ],
)
def test_rule_of_thumb_follows_the_largest_kl_between_policies(nats: float, advice: str) -> None:
    """An answer has 20 tokens. KLs of mixtures and from the reference do not count."""
    found = _found(0.0)
    kl_RPM = np.full((len(ROWS), 60, 2), 1000.0)
    kl_RPM[0], kl_RPM[1] = [0.0, nats], [nats / 2, 0.0]
    rule = both_ways.rule_of_thumb(replace(found, kl_RPM=kl_RPM))
    assert rule is not None
    assert advice in rule
    assert f"up to {nats / 20:.2f} nats a token apart" in rule
    assert verdict(replace(found, kl_RPM=kl_RPM))[-1] == rule
    alone = replace(found, kl_RPM=kl_RPM, reference="q")
    assert both_ways.rule_of_thumb(alone) is None
