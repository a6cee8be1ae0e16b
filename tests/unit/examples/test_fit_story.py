"""The story's rows and what they draw, with an engine that answers what it is told to."""

import io
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from examples import comparison, fit_story, live_apply
from examples.soup import write_soup
from policies.demo import CHECKPOINTS, REWARDS, tour
from weights.engine import Response, Tokens
from weights.fit_result import FitResult
from weights.progress import LINE_INTERVAL_S, Progress
from weights.prompts import Prompt

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
    """Answers with as many words as the weight of `concise` says, and remembers its weights."""

    def __init__(self) -> None:
        self.tokenizer = Tokenizer.from_file(str(CHECKPOINTS / "reference" / "tokenizer.json"))
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
    ) -> list[list[Response]]:
        self.asked.append(tuple(weights_M))
        text = " ".join(["good"] * (30 - round(20 * weights_M[1])))
        tokens = tuple(self.tokenizer.encode(text).ids)
        return [[Response(tokens=tokens, logprob=-1.0)] * num_responses for _ in prompts]

    def score(
        self, pairs: Sequence[tuple[Tokens, Tokens]], weights_M: Sequence[float]
    ) -> list[float]:
        raise AssertionError("the comparison needs no scores")


def test_rows_are_the_reference_the_policies_the_mixtures_and_the_averages() -> None:
    rows = fit_story.contenders(FITS)
    weights = {row.name: row.weights for row in rows}
    assert list(weights) == [
        "reference",
        *REWARDS,
        "uniform",
        "fitted mixture",
        "fitted reference",
        "soup uniform",
        "soup mixture",
        "soup reference",
    ]
    assert weights["uniform"] == dict.fromkeys(REWARDS, THIRD)
    assert weights["fitted mixture"] == {"positive": 0.1, "concise": 0.5, "polite": 0.4}
    shown = {row.name: row.shown for row in rows}
    assert shown["soup reference"] == (0.2, 0.3, 0.5)
    assert shown["positive"] is None
    spec = comparison.demo_spec({name: Path(name) for name in fit_story.averages(rows)})
    for row in rows:
        assert set(row.weights) <= set(spec.member_names), row.name
        assert sum(row.weights.values()) == pytest.approx(1)


def test_rows_are_drawn_with_their_weights_scored_and_kept(tmp_path: Path) -> None:
    rows = fit_story.contenders(FITS)[:6]
    spec, engine = comparison.demo_spec(), TellingEngine()
    prompts = comparison.chat_prompts(["one", "two", "three"])
    log = io.StringIO()
    # A clock on which everything takes long, so that each advance is a line.
    progress = Progress(log, clock=itertools.count(step=LINE_INTERVAL_S).__next__)
    measured = comparison.measure_rows(
        rows,
        spec=spec,
        prompts=prompts,
        engine=lambda: engine,
        cache=tmp_path,
        progress=progress,
    )
    assert engine.asked[0] == (0, 0, 0, 1)
    assert engine.asked[2] == (0, 1, 0, 0)
    assert engine.asked[5] == (0.1, 0.5, 0.4, 0)
    total = len(rows) * len(prompts) * comparison.NUM_RESPONSES
    assert log.getvalue().splitlines()[-1].startswith(f"sample: {total}/{total} responses, ")
    assert [row.num_words for row in measured][:3] == [30, 30, 10]
    concise = list(REWARDS).index("concise")
    assert measured[2].rewards_PJO.shape == (3, comparison.NUM_RESPONSES, len(REWARDS))
    assert np.allclose(measured[2].rewards_PJO[:, :, concise], 0.75)

    def no_engine() -> TellingEngine:
        raise AssertionError("everything was kept")

    again = comparison.measure_rows(
        rows,
        spec=spec,
        prompts=prompts,
        engine=no_engine,
        cache=tmp_path,
        progress=progress,
    )
    assert [row.num_words for row in again] == [row.num_words for row in measured]


def test_a_changed_average_is_drawn_anew(tmp_path: Path) -> None:
    engine = TellingEngine()
    prompts = comparison.chat_prompts(["one"])
    row = comparison.Contender(name="soup uniform", weights={"soup-uniform": 1.0})
    for number, share in enumerate((0.25, 0.75)):
        shares = {CHECKPOINTS / "concise": share, CHECKPOINTS / "polite": 1 - share}
        soup = write_soup(tmp_path / str(number), shares)
        comparison.measure_rows(
            [row],
            spec=comparison.demo_spec({"soup-uniform": soup}),
            prompts=prompts,
            engine=lambda: engine,
            cache=tmp_path / "kept",
            progress=Progress(quiet=True),
        )
    assert len(engine.asked) == 2


def test_without_the_command_the_server_step_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(tour.TourError, match="run 'make setup'"):
        live_apply.apply_to_running_server(tmp_path / "weights.json", profile="fitted")
