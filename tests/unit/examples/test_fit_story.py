"""The story's rows draw with the right weights, on an engine whose answers are known."""

import io
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from examples import comparison, fit_story, live_apply
from examples.gains import measure_gains
from prefmix.policies.demo import REWARDS
from prefmix.policies.demo.tour.server import TourError
from prefmix.weights.engines.engine import Figures, Response
from prefmix.weights.engines.member_prompts import Tokens
from prefmix.weights.engines.progress import LINE_INTERVAL_S, Progress
from prefmix.weights.engines.prompts import Prompt
from prefmix.weights.evaluation.weighting import Weighting
from prefmix.weights.fit.result import FitResult

THIRD = 1 / 3


def fitted(*weights: float) -> FitResult:
    weights_K = np.array(weights)
    return FitResult(
        names=tuple(REWARDS),
        weights_K=weights_K,
        fitted="mixture (token level)",
        path_TK=weights_K[None],
        rounds_kl_TK=None,
        certificate=None,
        deployed=None,
        verdict="trustworthy",
    )


FITS = {
    "minimax": fitted(0.1, 0.5, 0.4),
    "sequence": fitted(0.2, 0.3, 0.5),
    "minimax-parameters": fitted(0.3, 0.3, 0.4),
    "max-min": fitted(0.5, 0.1, 0.4),
    "max-min-parameters": fitted(0.6, 0.2, 0.2),
}


class TellingEngine:
    """An engine whose answers shorten with the weight of `concise`; remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[float, ...], str, int]] = []

    def tokenize(self, prompts: Sequence[Prompt]) -> list[Tokens]:
        return [(1,) for _ in prompts]

    def sample(
        self,
        prompts: Sequence[Tokens],
        weights_M: Sequence[float],
        *,
        num_responses: int,
        max_tokens: int,
        seed: int,
        mixing: str = "logits",
    ) -> list[list[Response]]:
        self.asked.append((tuple(weights_M), mixing, num_responses))
        text = " ".join(["word"] * (30 - round(20 * weights_M[1])))
        measured = Figures(log_partition=0.0, entropy=1.0, kl_M=(0.0,) * 4, logprob_M=(-1.0,) * 4)
        response = Response(
            tokens=(7,) * len(text.split()), logprob=-1.0, text=f" {text} ", figures=measured
        )
        return [[response] * num_responses for _ in prompts]

    def score(
        self, pairs: Sequence[tuple[Tokens, Tokens]], weights_M: Sequence[float]
    ) -> list[float]:
        raise AssertionError("the comparison needs no scores")


def test_rows_are_the_reference_the_policies_and_the_mixtures_in_all_ways() -> None:
    assert list(FITS) == list(fit_story.METHODS)
    rows = {row.name: row for row in comparison.contenders(fit_story.mixtures(FITS))}
    assert list(rows) == [
        *("reference", *REWARDS),
        *("uniform", "uniform, candidates", "uniform, parameters"),
        *("minimax", "minimax, parameters", "sequence", "sequence, candidates"),
        *("max-min", "max-min, parameters"),
    ]
    assert rows["uniform"].weights == dict.fromkeys(REWARDS, THIRD)
    assert rows["minimax"].weights == {"positive": 0.1, "concise": 0.5, "polite": 0.4}
    assert rows["max-min, parameters"].weights == FITS["max-min-parameters"].weights
    assert rows["max-min, parameters"].mixing == "parameters"
    assert rows["sequence, candidates"].candidates == comparison.NUM_CANDIDATES
    assert {name for pair in fit_story.PAIRS for name in pair} <= rows.keys()


def measured(rows: Sequence[Weighting], engine: TellingEngine, folder: Path, **options: object):
    return comparison.measured(
        rows,
        comparison.chat_prompts(["one", "two", "three"]),
        engine=lambda: engine,
        content_hashes={name: name for name in ("reference", *REWARDS)},
        cache=folder / "kept",
        **options,
    )


def test_rows_are_drawn_with_their_weights_scored_and_kept(tmp_path: Path) -> None:
    rows, engine = comparison.contenders(fit_story.mixtures(FITS)), TellingEngine()
    log = io.StringIO()
    # A clock on which everything takes long, so that each advance is a line.
    progress = Progress(log, clock=itertools.count(step=LINE_INTERVAL_S).__next__)
    found = measured(rows, engine, tmp_path, progress=progress)
    each, many = comparison.NUM_RESPONSES, comparison.NUM_RESPONSES * comparison.NUM_CANDIDATES
    asked = dict(zip((row.name for row in rows), engine.asked, strict=True))
    assert asked["reference"] == ((0, 0, 0, 1), "logits", each)
    assert asked["concise"] == ((0, 1, 0, 0), "logits", each)
    assert asked["sequence, candidates"] == ((0.2, 0.3, 0.5, 0), "logits", many)
    assert asked["minimax, parameters"] == ((0.3, 0.3, 0.4, 0), "parameters", each)
    total = sum(row.candidates for row in rows) * 3 * each
    # Rows whose draws other rows share are no new ones; each is counted.
    sampled = [line for line in log.getvalue().splitlines() if line.startswith("sample: ")]
    assert sampled[-1].startswith(f"sample: {total:}/{total} responses, ")
    assert found.tokens_R[:3].tolist() == [30, 30, 10]
    concise = list(REWARDS).index("concise")
    assert found.rewards_RPJO.shape == (len(rows), 3, each, len(REWARDS))
    assert np.allclose(found.rewards_RPJO[2, :, :, concise], 0.75)
    again = measured(rows, engine, tmp_path, progress=Progress(quiet=True))
    assert len(engine.asked) == len(rows), "everything was kept"
    assert np.array_equal(again.rewards_RPJO, found.rewards_RPJO)


class Better(TellingEngine):
    """An engine on which each policy writes what its objective wants."""

    def sample(self, *args, **options):
        drawn = super().sample(*args, **options)
        weights_M = args[1]
        texts = dict(enumerate(("love love love", "short", "please, thank you")))
        own = next((texts[k] for k in range(3) if weights_M[k] == 1), None)
        if own is None:
            return drawn
        return [[replace(each, text=own) for each in row] for row in drawn]


def test_win_rates_have_the_form_of_the_founding_table(tmp_path: Path) -> None:
    """One column an objective and the minimum; ties count half."""
    rows = comparison.contenders(fit_story.mixtures(FITS))
    found = measured(rows, Better(), tmp_path, progress=Progress(quiet=True))
    lines = fit_story.win_rates(measure_gains(found)).splitlines()
    assert lines[0].split() == ["win", "positive", "win", "concise", "win", "polite", "min", "win"]
    assert [line.split("  ")[0] for line in lines[1:]] == [row.name for row in rows]
    assert lines[1].split()[1:] == ["-"] * 4
    assert lines[3].split()[1::3] == ["0.500", "1.000", "0.500", "0.500"]


def test_the_story_is_narrow_and_speaks_of_every_pair(tmp_path: Path) -> None:
    rows = comparison.contenders(fit_story.mixtures(FITS))
    found = measured(rows, Better(), tmp_path, progress=Progress(quiet=True))
    told = fit_story._told(measure_gains(found))
    for row, other in fit_story.PAIRS:
        assert f"{row} less {other}: smallest " in told
    assert max(map(len, told.splitlines())) <= 140


def test_without_the_command_the_server_step_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(TourError, match="run 'make setup'"):
        live_apply.apply_to_running_server(tmp_path / "weights.json")
