"""The story's rows draw with the right weights, on an engine whose answers are known."""

import io
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from examples import comparison, fit_story, live_apply
from examples.gains import measure_gains
from prefmix.policies.demo import REWARDS
from prefmix.policies.demo.tour.server import TourError
from prefmix.weights.engines.local import Response, Tokens
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


FITS = {"mixture": fitted(0.1, 0.5, 0.4), "reference": fitted(0.2, 0.3, 0.5)}


class TellingEngine:
    """An engine whose answers shorten with the weight of `concise`; remembers all weights."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, ...]] = []

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
        assert mixing == "logits"
        self.asked.append(tuple(weights_M))
        text = " ".join(["word"] * (30 - round(20 * weights_M[1])))
        response = Response(tokens=(7,) * len(text.split()), logprob=-1.0, text=f" {text} ")
        return [[response] * num_responses for _ in prompts]

    def score(
        self, pairs: Sequence[tuple[Tokens, Tokens]], weights_M: Sequence[float]
    ) -> list[float]:
        raise AssertionError("the comparison needs no scores")


def test_rows_are_the_reference_the_policies_the_mixtures_and_the_averages() -> None:
    rows = {row.name: row for row in comparison.contenders(fit_story.mixtures(FITS))}
    assert list(rows) == [
        "reference",
        *REWARDS,
        "uniform",
        "fitted mixture",
        "fitted reference",
        "soup uniform",
        "soup mixture",
        "soup reference",
    ]
    assert rows["uniform"].weights == dict.fromkeys(REWARDS, THIRD)
    assert rows["fitted mixture"].weights == {"positive": 0.1, "concise": 0.5, "polite": 0.4}
    assert rows["soup reference"].shown == FITS["reference"].weights
    assert rows["soup reference"].taking_part == ("soup-reference",)


def measured(rows: Sequence[Weighting], engine: TellingEngine, folder: Path, **options: object):
    prompts = comparison.chat_prompts(["one", "two", "three"])
    number = len(list(folder.glob("scratch*")))
    return comparison.measured(
        rows,
        prompts,
        engine=lambda spec: engine,
        cache=folder / "kept",
        scratch=folder / f"scratch{number}",
        **options,
    )


def test_rows_are_drawn_with_their_weights_scored_and_kept(tmp_path: Path) -> None:
    rows, engine = comparison.contenders(fit_story.mixtures(FITS)), TellingEngine()
    log = io.StringIO()
    # A clock on which everything takes long, so that each advance is a line.
    progress = Progress(log, clock=itertools.count(step=LINE_INTERVAL_S).__next__)
    found = measured(rows, engine, tmp_path, progress=progress)
    assert engine.asked[0] == (0, 0, 0, 0, 0, 0, 1)
    assert engine.asked[2] == (0, 1, 0, 0, 0, 0, 0)
    assert engine.asked[5] == (0.1, 0.5, 0.4, 0, 0, 0, 0)
    assert engine.asked[9] == (0, 0, 0, 0, 0, 1, 0)
    total = len(rows) * 3 * comparison.NUM_RESPONSES
    assert log.getvalue().splitlines()[-1].startswith(f"sample: {total}/{total} responses, ")
    assert found.tokens_R[:3].tolist() == [30, 30, 10]
    concise = list(REWARDS).index("concise")
    assert found.rewards_RPJO.shape == (10, 3, comparison.NUM_RESPONSES, len(REWARDS))
    assert np.allclose(found.rewards_RPJO[2, :, :, concise], 0.75)
    again = measured(rows, engine, tmp_path, progress=Progress(quiet=True))
    assert len(engine.asked) == len(rows), "everything was kept"
    assert np.array_equal(again.rewards_RPJO, found.rewards_RPJO)


def test_a_changed_average_is_drawn_anew(tmp_path: Path) -> None:
    engine = TellingEngine()
    for share in (0.25, 0.75):
        shares = {"concise": share, "polite": 1 - share}
        row = Weighting(name="soup uniform", weights={"soup-uniform": 1.0}, shares=shares)
        measured([row], engine, tmp_path, progress=Progress(quiet=True))
    assert len(engine.asked) == 2


def test_win_rates_have_the_form_of_the_founding_table(tmp_path: Path) -> None:
    """One column an objective and the minimum; ties count half."""

    class Better(TellingEngine):
        def sample(self, *args, **options):
            drawn = super().sample(*args, **options)
            weights_M = args[1]
            texts = dict(enumerate(("love love love", "short", "please, thank you")))
            own = next((texts[k] for k in range(3) if weights_M[k] == 1), None)
            if own is None:
                return drawn
            return [[Response(tokens=(7,), logprob=-1.0, text=own)] * len(row) for row in drawn]

    rows = comparison.contenders(fit_story.mixtures(FITS))
    found = measured(rows, Better(), tmp_path, progress=Progress(quiet=True))
    lines = fit_story.win_rates(measure_gains(found)).splitlines()
    assert lines[0].split() == ["win", "positive", "win", "concise", "win", "polite", "min", "win"]
    assert [line.split("  ")[0] for line in lines[1:]] == [row.name for row in rows]
    assert lines[1].split()[1:] == ["-"] * 4
    assert lines[3].split()[1::3] == ["0.500", "1.000", "0.500", "0.500"]


def test_without_the_command_the_server_step_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(TourError, match="run 'make setup'"):
        live_apply.apply_to_running_server(tmp_path / "weights.json", profile="fitted")
