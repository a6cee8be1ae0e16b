"""Rewards, win rates and KLs of weightings whose law is known."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefmix.mixing.spec import Policy
from prefmix.weights.engines.progress import Progress
from prefmix.weights.engines.prompts import Prompt
from prefmix.weights.evaluation.evaluate import evaluate
from prefmix.weights.evaluation.evaluation import Evaluation
from prefmix.weights.evaluation.verdict import beats_its_members, verdict
from prefmix.weights.evaluation.weighting import Weighting, simplex_grid
from prefmix.weights.report.evaluation_report import write_evaluation_report
from prefmix.weights.report.pareto import pareto_optimal
from support.fit.toy_engine import ToyEngine

ROWS = [
    Weighting(name="reference", weights={"reference": 1.0}),
    Weighting(name="p", weights={"p": 1.0}),
    Weighting(name="q", weights={"q": 1.0}),
    Weighting(name="both", weights={"p": 0.5, "q": 0.5}),
    Weighting(name="average", weights={"soup": 1.0}, shares={"p": 0.5, "q": 0.5}),
]


def _evaluation(rewards_RPJO: np.ndarray) -> Evaluation:
    num_rows = len(rewards_RPJO)
    return Evaluation(
        rows=tuple(ROWS[:num_rows]),
        objectives=("a", "b"),
        members=("p", "q", "reference"),
        rewards_RPJO=rewards_RPJO,
        kl_RPM=np.zeros((num_rows, rewards_RPJO.shape[1], 3)),
        tokens_R=np.ones(num_rows),
        reference="reference",
    )


def test_win_rate_counts_all_pairs_and_ties_half() -> None:
    rewards = np.zeros((2, 1, 2, 2))
    rewards[0, 0, :, 0] = [0, 1]
    rewards[1, 0, :, 0] = [1, 2]
    assert _evaluation(rewards).wins_RPO[1, 0].tolist() == [0.875, 0.5]


@pytest.mark.parametrize(("shift", "beats"), [(3.0, True), (-3.0, False)])
def test_verdict_says_whether_the_mixture_is_worth_it(shift: float, beats: bool) -> None:
    rewards = np.random.default_rng(0).normal(size=(5, 40, 4, 2))
    rewards[1] += [3, -3]
    rewards[2] += [-3, 3]
    rewards[3] += shift
    found = _evaluation(rewards)
    best, members, averages, rewards_differ, rule = verdict(found)
    word = "beats" if beats else "is not shown to beat"
    assert f"both, {word} the best single policy, reference," in best
    assert beats_its_members(found) == beats
    assert members.startswith("Every mixture beats each" if beats else "1 of 1 mixtures is not")
    sign = "+" if beats else "-"
    assert averages.startswith(
        f"Mixture minus the parameter average at the same weights: both {sign}0"
    )
    assert rewards_differ.startswith("In 1 of 1 pairs a mean reward differs")
    assert "these policies are up to 0.00 nats a token apart" in rule
    assert len(found.table().splitlines()) == len(ROWS) + 1


def test_equal_mixture_does_not_beat_its_members() -> None:
    rewards = np.random.default_rng(1).normal(size=(4, 60, 4, 2))
    best, members, rule = verdict(_evaluation(rewards))
    assert rule.startswith("Rule of thumb, from small demo policies alone")
    assert "is not shown to beat" in best
    assert members == "1 of 1 mixtures is not shown to beat the best of their own members: both."
    assert verdict(_evaluation(rewards[:3])) == ["No mixture was measured."]


def test_pareto_front_leaves_out_what_another_row_beats() -> None:
    points = np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5], [0.4, 0.5], [0.5, 0.5]])
    assert pareto_optimal(points) == [0, 1, 2, 4]


@pytest.mark.parametrize("num_objectives", [1, 2, 3])
def test_report_needs_nothing_but_itself(
    num_objectives: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefmix.weights.report.plots._DPI", 40)
    rewards = np.random.default_rng(0).normal(size=(5, 6, 2, num_objectives))
    found = replace(_evaluation(rewards), objectives=("a<b", "b", "c")[:num_objectives])
    (tmp_path / "pareto-7-8.png").write_bytes(b"of an earlier report")
    page = write_evaluation_report(found, tmp_path, title="T", provenance={"seed": {"of": 3}})
    text = page.read_text(encoding="utf-8")
    pairs = list(itertools.combinations(range(num_objectives), 2))
    assert {path.name for path in tmp_path.glob("*.png")} == {
        f"pareto-{i}-{j}.png" for i, j in pairs
    }
    assert text.count("<img") == len(pairs)
    assert not re.findall(r'(?:src|href|srcset)="(?!data:image/png)', text)
    assert "a&lt;b" in text
    assert "seed.of" in text
    assert all(row.name in text for row in ROWS)


def test_grid_covers_the_simplex_without_its_vertices() -> None:
    grid = simplex_grid(3, 4)
    assert len(grid) == len(set(grid)) == 15 - 3
    assert all(sum(weights) == 1 and max(weights) < 1 for weights in grid)


def test_kls_are_those_of_the_deployed_mixture_and_draws_are_kept(tmp_path: Path) -> None:
    engine = ToyEngine(num_policies=2)
    rows = [
        Weighting(name="reference", weights={"reference": 1.0}),
        Weighting(name="mixture", weights={"p0": 0.3, "p1": 0.7}),
    ]

    def constant(
        prompts: Sequence[Prompt], answers: Sequence[str], tokens: Sequence[Sequence[int]]
    ) -> Sequence[float]:
        assert {len(each) for each in tokens} == {4}
        return [1.0] * len(answers)

    def measured() -> Evaluation:
        return evaluate(
            engine.prompts,
            rows,
            {"constant": constant},
            spec=engine.spec,
            engine=lambda: engine,
            content_hashes=dict.fromkeys(engine.spec.member_names, "hash"),
            cache=tmp_path,
            kl_members=engine.spec.member_names,
            num_responses=500,
            max_tokens=4,
            progress=Progress(quiet=True),
        )

    found = measured()
    assert found.kl_RM[0, 2] == 0.0
    exact_K = engine.deployed_kl(np.array([0.3, 0.7]))
    assert found.kl_RM[1, :2] == pytest.approx(exact_K, abs=0.03)
    assert found.rewards_RO.tolist() == [[1.0], [1.0]]
    assert found.wins_RPO[1].tolist() == [[0.5]] * len(engine.prompts)
    assert found.tokens_R.tolist() == [4, 4]
    calls = dict(engine.calls)
    assert np.array_equal(measured().kl_RM, found.kl_RM)
    assert engine.calls == calls
    rows.reverse()
    assert np.array_equal(measured().kl_RM[::-1], found.kl_RM), "a row's draw is its own"
    assert engine.calls == calls


def test_rows_that_are_compared_at_the_same_weights_draw_with_the_same_randomness(
    tmp_path: Path,
) -> None:
    """An average as a member, and mixed parameters, have the seed of the mixture of their weights;
    other weights have another."""
    toy = ToyEngine(num_policies=2)
    base = Policy(name="reference", model="base")
    toy.spec = replace(toy.spec, reference=base, base="base")
    even = {"p0": 0.5, "p1": 0.5}
    rows = [
        Weighting(name="even", weights=even),
        Weighting(name="even, parameters", weights=even, mixing="parameters"),
        Weighting(name="average", weights={"p1": 1.0}, shares=even),
        Weighting(name="p1", weights={"p1": 1.0}),
    ]
    seeds: list[int] = []
    sample = toy.sample

    def noted(*args: Any, seed: int, **settings: Any) -> Any:
        seeds.append(seed)
        return sample(*args, seed=seed, **settings)

    toy.sample = noted  # type: ignore[method-assign]
    evaluate(
        toy.prompts,
        rows,
        {"constant": lambda prompts, answers, tokens: [1.0] * len(answers)},
        spec=toy.spec,
        engine=lambda: toy,
        content_hashes=dict.fromkeys(toy.spec.member_names, "hash"),
        cache=tmp_path,
        num_responses=4,
        max_tokens=4,
        progress=Progress(quiet=True),
    )
    assert seeds[0] == seeds[1] == seeds[2] != seeds[3]
