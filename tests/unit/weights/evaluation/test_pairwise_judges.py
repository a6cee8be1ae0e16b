"""Judges see both orders; a chat model's words become verdicts."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from prefmix.server.cli.eval_rewards import check_judges, load_judges
from prefmix.server.config.errors import CommandError
from prefmix.weights.engines.errors import EngineError
from prefmix.weights.engines.progress import Progress
from prefmix.weights.engines.prompts import Prompt
from prefmix.weights.evaluation.evaluate import evaluate
from prefmix.weights.evaluation.pairwise_judges import ChatJudge, in_both_orders, verdict_of
from prefmix.weights.evaluation.verdict import verdict
from prefmix.weights.evaluation.weighting import Weighting
from support.fit.toy_engine import ToyEngine

PROMPTS = [Prompt(id="0", text="Hi?"), Prompt(id="1", text="Ho?")]


def first_place(prompts: Any, answers: Sequence[str], others: Any) -> list[float | None]:
    return [1.0] * len(answers)


def longer(prompts: Any, answers: Sequence[str], others: Sequence[str]) -> list[float | None]:
    return [
        None if "?" in one else 0.5 + 0.5 * ((len(one) > len(two)) - (len(one) < len(two)))
        for one, two in zip(answers, others, strict=True)
    ]


def test_a_preference_for_a_place_cancels() -> None:
    assert in_both_orders(first_place, PROMPTS, ["a", "b"], ["c", "d"]) == [0.5, 0.5]
    assert in_both_orders(longer, PROMPTS, ["aa", "b"], ["c", "dd"]) == [1, 0]
    assert in_both_orders(longer, PROMPTS, ["a", "b"], ["c", "d?"]) == [0.5, None]


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("A", 1),
        ("b.", 0),
        ("**B**", 0),
        ("Answer A", 1),
        ("Tie", 0.5),
        ("The better answer is b.", 0),
        ("It is a tie.", 0.5),
        ("A tie", 0.5),
        ("There is a clear winner: B", 0),
        ("A close call, but B", 0),
        ("A is a bit better than B", 1),
        ("Answer B wins over answer A", 0),
        ("A is not better than B", None),
        ("A or B", None),
        ("B, or a tie", None),
        ("A reply", None),
        ("neither", None),
        (None, None),
        ("", None),
    ],
)
def test_verdicts_are_read_from_words(said: object, verdict: float | None) -> None:
    assert verdict_of(said) == verdict


def chat_judge(answer: Any, **given: Any) -> ChatJudge:
    judge = ChatJudge("http://127.0.0.1:9/v1", model="m", criterion="kind", **given)
    judge._client = httpx.Client(
        transport=httpx.MockTransport(answer), headers=judge._client.headers
    )
    return judge


def test_a_model_is_asked_by_the_criterion_with_both_answers() -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        content = (
            "A"
            if "Answer A:\nshort" in json.loads(request.content)["messages"][0]["content"]
            else "B"
        )
        return httpx.Response(200, json={"choices": [{"message": {"content": content}}]})

    judge = chat_judge(answer, api_key="secret")
    assert in_both_orders(judge, PROMPTS, ["short", "long"], ["long", "short"]) == [1, 0]
    question = json.loads(asked[0].content)["messages"][0]["content"]
    assert "Criterion: kind." in question
    assert "Hi?" in question or "Ho?" in question
    assert str(asked[0].url) == "http://127.0.0.1:9/v1/chat/completions"
    assert asked[0].headers["authorization"] == "Bearer secret"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds between tries, which are not waited."""
    waits: list[float] = []
    monkeypatch.setattr("prefmix.weights.evaluation.pairwise_judges.time.sleep", waits.append)
    return waits


def test_one_failure_among_thousands_ends_nothing(waits: list[float]) -> None:
    failures = [httpx.Response(429, headers={"retry-after": "7"}), httpx.Response(503), None]

    def answer(request: httpx.Request) -> httpx.Response:
        if not failures:
            return httpx.Response(200, json={"choices": [{"message": {"content": "B"}}]})
        failure = failures.pop(0)
        if failure is None:
            raise httpx.ConnectError("reset")
        return failure

    assert chat_judge(answer)(PROMPTS[:1], ["a"], ["b"]) == [0.0]
    assert waits == [7, 2, 4]


def test_what_lasts_is_told_with_the_servers_words(waits: list[float]) -> None:
    wrong = {"error": {"message": "no model\n'm' here"}}
    judge = chat_judge(lambda _: httpx.Response(404, json=wrong))
    with pytest.raises(EngineError, match=r"404: .*no model.n'm' here"):
        judge(PROMPTS[:1], ["a"], ["c"])
    assert waits == [], "the same request would get the same answer"

    def down(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(EngineError, match="refused"):
        chat_judge(down)(PROMPTS[:1], ["a"], ["c"])
    assert waits == [1, 2, 4, 8]


def test_words_that_are_no_verdict_are_told() -> None:
    judge = chat_judge(
        lambda _: httpx.Response(200, json={"choices": [{"message": {"content": "<think> Okay"}}]})
    )
    assert judge(PROMPTS[:1], ["a"], ["b"]) == [None]
    assert judge.unread == "'<think> Okay'"


@pytest.mark.usefixtures("waits")
@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(500),
        httpx.Response(200, text="no"),
        httpx.Response(200, json={"choices": []}),
    ],
)
def test_a_server_that_does_not_judge_is_one_sentence(response: httpx.Response) -> None:
    judge = chat_judge(lambda _: response)
    with pytest.raises(EngineError, match=r"the judge at http://127\.0\.0\.1:9/v1 does not answer"):
        judge(PROMPTS, ["a", "b"], ["c", "d"])


def test_a_judge_is_one_more_objective_of_an_evaluation(tmp_path: Path) -> None:
    toy = ToyEngine(num_prompts=4)

    def reward(prompts: Any, texts: Sequence[str], tokens: Any) -> list[float | None]:
        return [float(sum(each)) for each in tokens]

    def even(prompts: Any, answers: Sequence[str], others: Any) -> list[float | None]:
        return [0.5] * len(answers)

    rows = [Weighting(name=name, weights={name: 1.0}) for name in ("p0", "p1")]
    found = evaluate(
        toy.prompts,
        rows,
        {"sum": reward},
        judges={"even": even},
        spec=toy.spec,
        engine=lambda: toy,
        content_hashes=dict.fromkeys(toy.spec.member_names, "hash"),
        cache=tmp_path,
        num_responses=3,
        max_tokens=4,
        progress=Progress(quiet=True),
    )
    assert found.objectives == ("sum", "even")
    assert found.rewards_RPJO[:, :, :, 1].tolist() == [[[0.5] * 3] * 4] * 2
    assert found.wins_RPO[1, :, 1].tolist() == [0.5] * 4
    assert verdict(found) == ["No mixture was measured."]
    found.rewards_RPJO[1, 0, :2, 1] = np.nan
    assert verdict(found)[1:] == ["even has no number for 2 of 24 answers; they are left out."]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("kind", "expected NAME=module:function"),
        ("kind=http://127.0.0.1:8000/v1", "NAME=URL#MODEL"),
        ("=m:f", "expected NAME=module:function"),
        ("sum=m:f", "which another objective is called"),
    ],
)
def test_malformed_judges_are_refused(flag: str, message: str) -> None:
    with pytest.raises(CommandError, match=message):
        load_judges([flag], taken={"sum": None})


def test_a_functions_verdicts_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    source = tmp_path / "judges.py"
    source.write_text(
        "def good(prompts, answers, others):\n"
        "    return [len(a) > len(o) for a, o in zip(answers, others)]\n"
        "def short(prompts, answers, others):\n    return []\n"
        "def wild(prompts, answers, others):\n    return [7] * len(answers)\n"
        "def broken(prompts, answers, others):\n    return answers[9]\n"
    )
    source.write_text(
        source.read_text()
        + "def words(prompts, answers, others):\n    return ['A'] * len(answers)\n"
        "def nested(prompts, answers, others):\n    return [[1]] * len(answers)\n"
    )
    names = ("good", "short", "wild", "broken", "words", "nested")
    judges = load_judges([f"{name}={source}:{name}" for name in names], taken=())
    assert judges["good"](PROMPTS, ["aa", "b"], ["c", "dd"]) == [True, False]
    for name, message in (
        ("short", "gave 0 for 2"),
        ("wild", "gave 7"),
        ("broken", "raised Index"),
        ("words", "gave 'A'"),
        ("nested", r"gave \[1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            judges[name](PROMPTS, ["a", "b"], ["c", "d"])


def test_a_judge_is_tried_before_the_engine_starts() -> None:
    seen: list[Any] = []

    def judge(prompts: Any, answers: Sequence[str], others: Sequence[str]) -> list[float | None]:
        seen.append((list(prompts), answers, others))
        return [None]

    check_judges({"kind": judge}, PROMPTS)
    assert [len(each) for each in seen[0]] == [1, 1, 1]
    with pytest.raises(EngineError, match="does not answer"):
        check_judges({"kind": chat_judge(lambda _: httpx.Response(401))}, PROMPTS)


def test_a_chat_model_is_named_after_the_address() -> None:
    judges = load_judges(["kind=http://127.0.0.1:9/v1#org/model"], taken=())
    assert isinstance(judges["kind"], ChatJudge)
    assert (judges["kind"]._url, judges["kind"]._model) == ("http://127.0.0.1:9/v1", "org/model")
