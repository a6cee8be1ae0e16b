"""The fit from prompts to result, over policies whose law is known exactly."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefmix.mixing.spec import Policy
from prefmix.weights.engines.member_prompts import MemberPrompts
from prefmix.weights.engines.prompts import Prompt, PromptsError, read_prompts
from prefmix.weights.fit.job import FitJob
from prefmix.weights.fit.sampling import FitInputs
from prefmix.weights.fit.score_table import ScoreTable
from prefmix.weights.fit.sequence_level.mirror_descent import DescentSettings
from prefmix.weights.fit.settings import FitError, FitSettings, importances_to_weights
from prefmix.weights.fit.summary import summary
from prefmix.weights.fit.table_fit import fit_table
from support.fit.toy_engine import ToyEngine


def job(toy: ToyEngine, cache: Path, *, retrained: str | None = None, **settings: Any) -> FitJob:
    defaults: dict[str, Any] = {"num_responses": 64, "num_rounds": 6}
    inputs = FitInputs(
        spec=toy.spec,
        prompts=toy.prompts,
        settings=FitSettings(**{**defaults, **settings}),
        engine=lambda: toy,
        content_hashes={
            name: "new" if name == retrained else name for name in toy.spec.member_names
        },
        cache=cache,
        quiet=True,
    )
    return FitJob(inputs)


def test_mixture_sampler_equalises_the_deployed_kls(tmp_path: Path) -> None:
    toy = ToyEngine(seed=1)
    result = job(toy, tmp_path, num_responses=128).run()
    exact_K = toy.deployed_kl(result.weights_K)
    assert np.ptp(exact_K) < 0.12 * exact_K.mean()
    uniform_K = toy.deployed_kl(np.full(3, 1 / 3))
    assert exact_K.max() < uniform_K.max()
    assert result.deployed is not None
    for name, kl in zip(result.names, exact_K, strict=True):
        low, high = result.deployed.kl_interval[name]
        assert low - 0.1 < kl < high + 0.1
    assert result.verdict == "trustworthy"
    assert result.rounds_kl_TK is not None
    assert result.rounds_kl_TK.shape == (6, 3)


def test_reference_sampler_certifies_the_sequence_level_objective(tmp_path: Path) -> None:
    result = job(
        ToyEngine(seed=2, num_prompts=48), tmp_path, sampler="reference", num_responses=256
    ).run()
    assert result.certificate is not None
    kls = list(result.certificate.kl.values())
    assert max(kls) - min(kls) < 0.05
    low, high = result.certificate.gap_interval
    assert low <= result.certificate.gap <= high + 1e-9
    assert [row["responses"] for row in result.certificate.m_sweep][-1] == 256
    assert result.certificate.objective < 0
    assert result.verdict.startswith("trustworthy for the sequence-level objective")


def test_a_repeated_fit_draws_nothing(tmp_path: Path) -> None:
    first = job(ToyEngine(seed=3), tmp_path, num_responses=8, num_rounds=3).run()
    toy = ToyEngine(seed=3)
    again = job(toy, tmp_path, num_responses=8, num_rounds=3).run()
    assert toy.calls == {"sample": 0, "score": 0}
    assert (again.weights_K == first.weights_K).all()


def test_a_killed_fit_goes_on_to_the_same_result(tmp_path: Path) -> None:
    """The fit resumes with any of its parts missing, and one half written."""
    whole = job(ToyEngine(seed=4), tmp_path / "a", num_responses=8, num_rounds=3).run()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    parts = sorted((tmp_path / "b").rglob("*.parquet"))
    for part in parts[::2]:
        part.with_suffix(".partial").write_bytes(b"half")
        part.unlink()
    toy = ToyEngine(seed=4)
    resumed = job(toy, tmp_path / "b", num_responses=8, num_rounds=3).run()
    assert (resumed.weights_K == whole.weights_K).all()
    assert toy.calls["sample"] + toy.calls["score"] == len(parts[::2])


class PromptedToy(ToyEngine):
    """The same law, whose members each read a prompt of their own: ten times the number, and the
    member's."""

    def tokenize(self, prompts: Sequence[Prompt]) -> Any:
        members = range(self.spec.num_members)
        return [
            MemberPrompts(
                tuple((int(prompt.id) * 10 + member,) * (1 + member) for member in members)
            )
            for prompt in prompts
        ]

    def _number(self, prompt: Any) -> tuple[int]:
        (number,) = {tokens[0] // 10 for tokens in prompt.tokens_M}
        assert [tokens[0] % 10 for tokens in prompt.tokens_M] == [0, 1, 2, 3]
        assert [len(tokens) for tokens in prompt.tokens_M] == [1, 2, 3, 4]
        return (number,)

    def sample(self, prompts: Any, *args: Any, **settings: Any) -> Any:
        return super().sample([self._number(prompt) for prompt in prompts], *args, **settings)

    def score(self, pairs: Any, *args: Any, **settings: Any) -> Any:
        plain = [(self._number(prompt), tokens) for prompt, tokens in pairs]
        return super().score(plain, *args, **settings)


@pytest.mark.parametrize("sampler", ["mixture", "reference"])
def test_each_member_is_scored_under_its_own_prompt_after_a_kill_too(
    tmp_path: Path, sampler: str
) -> None:
    small = {"num_responses": 8, "num_rounds": 3, "sampler": sampler}
    plain = job(ToyEngine(seed=4), tmp_path / "plain", **small).run()
    prompted = PromptedToy(seed=4)
    prompted.spec = replace(prompted.spec, has_prompts=True, prompts_sha256="a" * 64)
    result = job(prompted, tmp_path / "own", **small).run()
    assert (result.weights_K == plain.weights_K).all()
    for part in (tmp_path / "own").rglob("score-*.parquet"):
        part.unlink()
    again = job(prompted, tmp_path / "own", **small).run()
    assert (again.weights_K == plain.weights_K).all()
    other = PromptedToy(seed=4)
    other.spec = replace(prompted.spec, prompts_sha256="b" * 64)
    job(other, tmp_path / "own", **small).run()
    assert other.calls["sample"] > 0, "responses to other prompts were taken for its own"


def test_parameters_of_policies_with_prompts_of_their_own_are_not_mixed(tmp_path: Path) -> None:
    toy = ToyEngine()
    base = Policy(name="reference", model="base")
    toy.spec = replace(toy.spec, reference=base, base="base", prompts_sha256="a" * 64)
    with pytest.raises(FitError, match="one model, which reads one prompt"):
        job(toy, tmp_path, mixing="parameters").run()


def test_other_settings_prompts_or_policies_are_other_draws(tmp_path: Path) -> None:
    small = {"num_responses": 4, "num_rounds": 2}
    job(ToyEngine(seed=5), tmp_path, **small).run()
    for change in (
        {"max_tokens": 7},
        {"num_responses": 5},
        {"descent": DescentSettings(seed=1)},
    ):
        toy = ToyEngine(seed=5)
        job(toy, tmp_path, **{**small, **change}).run()
        assert toy.calls["sample"] > 0, change
    toy = ToyEngine(seed=5)
    job(toy, tmp_path, retrained="p0", **small).run()
    assert toy.calls["sample"] > 0


def test_seeds_agree(tmp_path: Path) -> None:
    ends = [
        job(ToyEngine(seed=6), tmp_path, descent=DescentSettings(seed=seed)).run().weights_K
        for seed in range(3)
    ]
    assert np.ptp(ends, axis=0).max() < 0.06


def test_fixed_importances_are_taken_as_they_are(tmp_path: Path) -> None:
    result = job(ToyEngine(), tmp_path, importances={"p0": 1.0, "p2": 3.0}).run()
    assert result.weights == {"p0": 0.25, "p1": 0.0, "p2": 0.75}
    assert result.deployed is not None


@pytest.mark.parametrize(
    ("importances", "message"),
    [
        ({"px": 1.0}, "importance of 'px': no such policy; there are: p0, p1"),
        ({"p0": -1.0, "p1": 2.0}, "non-negative"),
        ({"p0": float("nan")}, "finite"),
        ({"p0": 0.0}, "not all 0"),
    ],
)
def test_bad_importances_are_refused(importances: dict[str, float], message: str) -> None:
    with pytest.raises(FitError, match=message):
        importances_to_weights(importances, ["p0", "p1"])


def test_reference_sampler_needs_a_reference(tmp_path: Path) -> None:
    from dataclasses import replace

    toy = ToyEngine()
    toy.spec = replace(toy.spec, reference=None)
    with pytest.raises(FitError, match="none was given; add --reference"):
        job(toy, tmp_path, sampler="reference")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"sampler": "best"}, "allowed: mixture, sequence, reference"),
        ({"num_responses": 1}, "num_responses is 1; it must be at least 2"),
        ({"num_rounds": 1}, "num_rounds is 1"),
        ({"round_radius": 3.0}, "the step size is 3.0; .* above 0 and at most 1"),
        ({"round_radius": float("nan")}, "the step size is nan"),
    ],
)
def test_impossible_settings_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(FitError, match=message):
        FitSettings(**setting)


def table(*, responses: int, prompts: int = 6, rewards: bool = False) -> ScoreTable:
    rng = np.random.default_rng(0)
    rows = responses * prompts
    return ScoreTable(
        names=("a", "b"),
        prompt_ids_N=np.repeat(np.arange(prompts), responses),
        num_tokens_N=rng.integers(5, 50, size=rows),
        scores_NK=rng.normal(size=(rows, 2)) - (0 if rewards else 20),
        proposal_N=None if rewards else rng.normal(size=rows) * 0.1 - 20,
    )


def test_one_response_a_prompt_is_refused() -> None:
    with pytest.raises(FitError, match="single response"):
        fit_table(table(responses=1), FitSettings())


@pytest.mark.parametrize("sampler", ["mixture", "sequence", "reference"])
def test_a_floor_that_not_all_weights_can_have_is_refused_before_anything_is_drawn(
    sampler: str, tmp_path: Path
) -> None:
    toy = ToyEngine()
    floor = DescentSettings(min_weight=0.9)
    most = f"{1 / len(toy.spec.policies):.4g}"
    with pytest.raises(FitError, match=rf"0.9 \(--min-weight\), .* at most {most}"):
        job(toy, tmp_path, sampler=sampler, descent=floor)
    with pytest.raises(FitError, match=r"0.9 \(--min-weight\), which 2 policies"):
        fit_table(table(responses=4), FitSettings(descent=floor))


def test_tables_of_rewards_need_beta_and_others_refuse_it() -> None:
    result = fit_table(table(responses=16, rewards=True), FitSettings(), beta=0.5)
    assert result.fitted == "rewards"
    with pytest.raises(ValueError, match="positive --beta"):
        fit_table(table(responses=16, rewards=True), FitSettings())
    with pytest.raises(ValueError, match="leave --beta out"):
        fit_table(table(responses=16), FitSettings(), beta=0.5)


def test_given_importances_of_rewards_are_not_called_a_kl() -> None:
    settings = FitSettings(importances={"a": 1.0}, descent=DescentSettings(min_weight=0.2))
    result = fit_table(table(responses=16, rewards=True), settings, beta=0.5)
    assert result.weights == {"a": 1.0, "b": 0.0}
    text = summary(result)
    assert "KL to its policy" in text
    assert "sequence KL" not in text
    assert re.search(r"^reward +weight", text, flags=re.MULTILINE)
    assert result.at_floor == ()


@pytest.mark.parametrize("sampler", ["mixture", "reference"])
def test_a_floor_is_no_reason_for_distrust(sampler: str, tmp_path: Path) -> None:
    """The floor raises a policy's weight and lowers its KL: the optimum above the floor."""
    free = job(ToyEngine(seed=7), tmp_path, sampler=sampler, num_responses=128).run()
    lightest = min(free.weights, key=free.weights.__getitem__)
    floor = free.weights[lightest] + 0.04
    descent = DescentSettings(min_weight=floor)
    result = job(
        ToyEngine(seed=7), tmp_path, sampler=sampler, num_responses=128, descent=descent
    ).run()
    assert result.at_floor == (lightest,)
    assert result.verdict.startswith("trustworthy")
    assert f"nearer than the rest: {lightest}" in re.sub(r"\s+", " ", summary(result))
    assert result.deployed is not None
    assert result.deployed.gap < 0.01


def test_low_effective_sample_size_is_a_loud_verdict() -> None:
    rng = np.random.default_rng(1)
    spread = table(responses=16)
    wild = ScoreTable(
        names=spread.names,
        prompt_ids_N=spread.prompt_ids_N,
        num_tokens_N=spread.num_tokens_N,
        scores_NK=spread.scores_NK + rng.normal(size=spread.scores_NK.shape) * 40,
        proposal_N=spread.proposal_N,
    )
    verdict = fit_table(wild, FitSettings()).verdict
    assert verdict.startswith("not trustworthy: the estimate rests on")
    assert "--sampler mixture" in verdict


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no prompts"),
        ("{", "line 1: no JSON"),
        ('{"prompt": 3}', "prompt is 3, expected some text"),
        ('{"text": "a"}', "line 1: expected"),
        ('{"prompt": "a", "messages": []}', "line 1: expected"),
        ('{"messages": ["hi"]}', "expected objects with role and content"),
        ('{"id": 1, "prompt": "a"}\n{"id": 1, "prompt": "b"}', "two prompts have the id '1'"),
    ],
)
def test_bad_prompt_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(PromptsError, match=message):
        read_prompts(path)


def test_prompts_keep_ids_and_both_forms(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"prompt": "a"}\n\n{"id": "x", "messages": [{"role": "user", "content": "b"}]}\n'
    )
    raw, chat = read_prompts(path)
    assert (raw.id, raw.text) == ("1", "a")
    assert chat.id == "x"
    assert chat.messages == ({"role": "user", "content": "b"},)
