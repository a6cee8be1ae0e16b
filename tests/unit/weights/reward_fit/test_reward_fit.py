"""The fit to rewards, over policies whose gains are known exactly."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefmix.mixing.spec import Policy
from prefmix.mixing.ways_to_mix import Mixing
from prefmix.weights.engines.prompts import Prompt
from prefmix.weights.fit.output import write_profile
from prefmix.weights.fit.rewards import Reward
from prefmix.weights.fit.sampling import FitInputs, Sampling
from prefmix.weights.fit.sequence_level.objective import Floats
from prefmix.weights.fit.settings import FitError, FitSettings
from prefmix.weights.report.reward_report import write_reward_report
from prefmix.weights.reward_fit.gains import Judged, judged_rewards, scales
from prefmix.weights.reward_fit.job import RewardFitJob
from prefmix.weights.reward_fit.result import RewardFitResult
from prefmix.weights.reward_fit.summary import summary, what_was_fitted
from prefmix.weights.store.store import WeightsStore
from support.fit.toy_engine import LENGTH, NUM_TOKENS, ToyEngine

TASTES = np.random.default_rng(4).normal(size=(3, NUM_TOKENS + 1, NUM_TOKENS))
"""The rewards of a token after a token, by objective."""


def earned(tokens_NL: np.ndarray, objective: int) -> Floats:
    states_NL = np.concatenate([np.zeros((len(tokens_NL), 1), int), tokens_NL[:, :-1] + 1], axis=1)
    return TASTES[objective, states_NL, tokens_NL].sum(axis=1)


def reward(objective: int) -> Reward:
    def judge(
        prompts: Sequence[Prompt], texts: Sequence[str], tokens: Sequence[Sequence[int]]
    ) -> list[float | None]:
        assert len(prompts) == len(texts) == len(tokens)
        return [float(each) for each in 10**objective * earned(np.array(tokens), objective)]

    return judge


REWARDS = {f"r{o}": reward(o) for o in range(3)}


class Tuned(ToyEngine):
    """Policy k wants what reward k gives, more than the reference does."""

    def __init__(self) -> None:
        super().__init__(seed=5)
        self.logits_MPST[:3] = 0.3 * self.logits_MPST[:3] + TASTES[:, None]

    def gains(self, weights_K: Floats, mixing: Mixing = "logits") -> Floats:
        """Exact gains, [O]."""
        zero_O, *ones = (self._rewards(row) for row in np.eye(4)[[3, 0, 1, 2]])
        own_O = self._rewards(np.append(weights_K, 0.0), mixing)
        return (own_O - zero_O) / (np.max(ones, axis=0) - zero_O)

    def _rewards(self, weights_M: Floats, mixing: Mixing = "logits") -> Floats:
        sequences_NL = np.array(list(itertools.product(range(NUM_TOKENS), repeat=LENGTH)))
        laws_PST = self._law(weights_M, mixing)
        chance_N = np.mean([np.exp(self._logprobs(law, sequences_NL)) for law in laws_PST], axis=0)
        return np.array([chance_N @ earned(sequences_NL, o) for o in range(3)])

    def best(
        self, aims_AO: Floats, mixing: Mixing = "logits", *, near_K: Floats | None = None
    ) -> float:
        """The largest aim on a grid of weights, or of those within .17 of some."""
        grid = [np.array(w) / 12 for w in itertools.product(range(13), repeat=3) if sum(w) == 12]
        if near_K is not None:
            grid = [w for w in grid if np.abs(w - near_K).max() < 0.17]
        return max(float((aims_AO @ self.gains(w, mixing)).min()) for w in grid)


def fit(
    toy: ToyEngine,
    cache: Path,
    aim: Any = "max-min-reward",
    *,
    mixing: Mixing = "logits",
    num_responses: int = 48,
    **given: Any,
) -> RewardFitResult:
    inputs = FitInputs(
        spec=toy.spec,
        prompts=toy.prompts,
        settings=FitSettings(num_responses=num_responses, mixing=mixing),
        engine=lambda: toy,
        content_hashes={name: name for name in toy.spec.member_names},
        cache=cache,
        quiet=True,
    )
    return RewardFitJob(inputs, aim=aim, **{"rewards": REWARDS, **given}).run()


@pytest.fixture(scope="module")
def toy() -> Tuned:
    return Tuned()


@pytest.fixture(scope="module")
def found(toy: Tuned, tmp_path_factory: pytest.TempPathFactory) -> RewardFitResult:
    return fit(toy, tmp_path_factory.mktemp("cache"))


def test_the_smallest_gain_is_nearly_the_best_possible(toy: Tuned, found: RewardFitResult) -> None:
    """Rewards of scales that differ a hundredfold count alike."""
    best, uniform = toy.best(np.eye(3)), toy.gains(np.full(3, 1 / 3)).min()
    assert best > uniform + 0.05, "a world in which there is nothing to fit"
    assert toy.gains(found.weights_K).min() > best - 0.03
    assert found.verdict == "trustworthy"
    low, high = found.measured.aim_interval
    assert low - 0.05 < toy.gains(found.weights_K).min() < high + 0.05
    assert found.scales.best_of_O == ("p0", "p1", "p2")
    assert found.alone_RO[3] == pytest.approx(0, abs=1e-9)
    assert found.alone_RO[:3].max(axis=0) == pytest.approx(1)


@pytest.mark.parametrize(
    ("aim", "importances", "shares"),
    [("mean", None, [1, 1, 1]), ("weighted", {"r0": 1, "r2": 5}, [1, 0, 5])],
)
def test_a_mean_of_gains_is_nearly_the_best_possible(
    toy: Tuned, tmp_path: Path, aim: str, importances: Any, shares: list[float]
) -> None:
    result = fit(toy, tmp_path, aim, importances=importances)
    aims_AO = np.array([shares]) / sum(shares)
    assert float((aims_AO @ toy.gains(result.weights_K))[0]) > toy.best(aims_AO) - 0.03
    assert result.measured.multipliers is None
    assert result.importance_O == pytest.approx(aims_AO[0])


@pytest.fixture(scope="module")
def adapters() -> Tuned:
    """The same policies as adapters of one base, whose mean of parameters is no mixture."""
    toy = Tuned()
    base = Policy(name="reference", model="base")
    toy.spec = replace(toy.spec, reference=base, base="base")
    return toy


@pytest.mark.parametrize(
    ("aim", "aims_AO"), [("max-min-reward", np.eye(3)), ("mean", np.full((1, 3), 1 / 3))]
)
def test_the_mean_of_parameters_is_fitted_to_rewards(
    adapters: Tuned, tmp_path: Path, aim: str, aims_AO: Floats
) -> None:
    """The answer is a local optimum of what the mean of the parameters truly gains."""
    result = fit(adapters, tmp_path, aim, mixing="parameters", num_responses=96)
    assert "the served mean of the policies' parameters" in what_was_fitted(result)
    reached_O = adapters.gains(result.weights_K, "parameters")
    best = adapters.best(aims_AO, "parameters", near_K=result.weights_K)
    uniform = (aims_AO @ adapters.gains(np.full(3, 1 / 3), "parameters")).min()
    assert best > uniform + 0.02, "a world in which there is nothing to fit"
    assert (aims_AO @ reached_O).min() > best - 0.015
    if aim == "max-min-reward":
        of_logits_O = adapters.gains(result.weights_K)
        assert np.abs(reached_O - of_logits_O).max() > 0.05, "one law for both ways"
    for gain, (low, high) in zip(reached_O, result.measured.gain_interval.values(), strict=True):
        assert low - 0.02 < gain < high + 0.02


def test_slopes_of_mixed_parameters_are_those_of_the_gains(adapters: Tuned, tmp_path: Path) -> None:
    """Score functions by finite differences give dG/dw along the simplex."""
    w = np.array([0.5, 0.2, 0.3])
    sampling = Sampling(
        FitInputs(
            spec=adapters.spec,
            prompts=adapters.prompts,
            settings=FitSettings(num_responses=2000, mixing="parameters"),
            engine=lambda: adapters,
            content_hashes={},
            cache=tmp_path,
            quiet=True,
        ),
        num_responses=1,
        takes_differences=True,
    )
    batch = sampling.draw(w, adapters.prompts, seed=0, title="", mixing="parameters")
    rewards_NO = judged_rewards(batch.answers, REWARDS)
    found_OK = Judged(measured=batch.measured, gains_NO=rewards_NO).slope_per_prompt().mean(axis=0)
    step, scale_O = 1e-4, 10.0 ** np.arange(3)
    for j in (0, 1):
        way = np.eye(3)[j] - np.eye(3)[2]
        ends = [
            adapters._rewards(np.append(w + sign * step * way, 0.0), "parameters")
            for sign in (1, -1)
        ]
        true_O = (ends[0] - ends[1]) / (2 * step)
        assert found_OK @ way / scale_O == pytest.approx(true_O, abs=0.12)


def test_the_front_is_what_no_other_point_beats(found: RewardFitResult) -> None:
    points = [*found.gains_TO.tolist(), list(found.measured.gain.values())]
    assert found.front
    for index, own in enumerate(points):
        beaten = any(
            all(a >= b for a, b in zip(other, own, strict=True)) and other != own
            for other in points
        )
        assert (index in found.front) != beaten


def test_summary_and_report_say_it_on_one_screen(
    toy: Tuned, found: RewardFitResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefmix.weights.report.plots._DPI", 40)
    text = summary(found)
    assert len(text.splitlines()) <= 40
    assert max(map(len, text.splitlines())) <= 80
    for said in ("Smallest gain", "Could rise by", "binds", "answer", "Verdict: trustworthy"):
        assert said in text
    _, provenance = write_profile(
        tmp_path / "w.json", found, toy.spec.member_names, profile="fair", about={"prompts": "h"}
    )
    profiles = WeightsStore(tmp_path / "w.json").read()
    assert profiles.weights("fair")["p0"] == pytest.approx(found.weights_K[0])
    page = write_reward_report(found, tmp_path / "report", title="Fit", provenance=provenance)
    html = page.read_text()
    assert "front that the fit passed" in html
    assert "http" not in html.replace("http-equiv", "")
    charts = {each.name for each in page.parent.glob("*.png")}
    assert charts == {
        *("front-0-1.png", "front-0-2.png", "front-1-2.png", "gains.png", "trajectory.png")
    }


def test_scales_need_a_policy_that_earns_more() -> None:
    rng = np.random.default_rng(0)
    rewards_RPO = rng.normal(size=(3, 64, 1))
    names = {"members": ("a", "b", "reference"), "objectives": ("kind",)}
    with pytest.raises(FitError, match="no policy earns clearly more of the reward 'kind'"):
        scales(rewards_RPO, reference="reference", **names)
    rewards_RPO[1] += 3
    found = scales(rewards_RPO, reference="reference", **names)
    assert (found.best_of_O, found.zero_O[0]) == (("b",), rewards_RPO[2].mean())
    without = scales(rewards_RPO, reference=None, **names)
    assert without.zero_O[0] == rewards_RPO.mean(axis=1).min()


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_rewards_that_do_not_apply_are_refused(toy: Tuned, tmp_path: Path, value: Any) -> None:
    def judge(prompts: Any, texts: Sequence[str], tokens: Any) -> list[float | None]:
        return [1.0] * (len(texts) - 1) + [value]

    with pytest.raises(FitError, match=r"gives no finite number for a response to prompt '\d+'"):
        fit(toy, tmp_path, rewards={"r": judge})


@pytest.mark.parametrize(
    ("aim", "importances", "message"),
    [
        ("weighted", None, "give --objective weighted"),
        ("mean", {"r0": 1}, "give --objective weighted"),
        ("weighted", {"r9": 1}, "no such reward"),
        ("weighted", {"r0": 0}, "not all 0"),
        ("weighted", {"r0": -1, "r1": 3}, "non-negative"),
    ],
)
def test_importances_belong_to_rewards(
    toy: Tuned, tmp_path: Path, aim: Any, importances: Any, message: str
) -> None:
    with pytest.raises(FitError, match=message):
        fit(toy, tmp_path, aim, importances=importances)
