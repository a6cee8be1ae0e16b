"""Answers that the engine ended because a policy failed become errors, counts and log lines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from prefmix.mixing import wire
from prefmix.server.telemetry.failed_policies import LOG_INTERVAL_S, FailedPolicies
from prefmix.server.telemetry.metrics import POLICY_FAILURES

MEMBERS = ("broken", "left", "right")


def output(finish_reason: str | None = None, stop_reason: Any = None) -> SimpleNamespace:
    answer = SimpleNamespace(finish_reason=finish_reason, stop_reason=stop_reason)
    return SimpleNamespace(outputs=[answer])


def failed_output(*policies: str) -> SimpleNamespace:
    return output("error", wire.to_stop_reason(policies))


def failures(policy: str) -> float:
    return float(POLICY_FAILURES.labels(policy)._value.get())


async def collect(outputs: AsyncIterator[Any], *, most: int = 100) -> list[Any]:
    seen: list[Any] = []
    async for each in outputs:
        seen.append(each)
        if len(seen) == most:
            break
    return seen


def test_other_answers_pass_unchanged() -> None:
    answers = [output(), output(), output("stop", "\n"), output("stop", 17), output("error")]

    async def generate(prompt: str) -> AsyncIterator[Any]:
        assert prompt == "hello"
        for each in answers:
            yield each

    assert asyncio.run(collect(FailedPolicies(generate, MEMBERS).generate("hello"))) == answers


def test_a_failed_answer_raises_counts_and_is_said_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [1000.0]

    async def generate() -> AsyncIterator[Any]:
        yield output()
        yield failed_output("broken")

    failed = FailedPolicies(generate, MEMBERS, clock=lambda: now[0])
    before = failures("broken")
    for _ in range(5):
        with pytest.raises(Exception, match="policy 'broken' computed NaN or infinity") as raised:
            asyncio.run(collect(failed.generate()))
        assert raised.type.__name__ == "GenerationError"
        assert raised.value.status_code == 500
    assert failures("broken") - before == 5
    assert len(caplog.messages) == 1
    now[0] += LOG_INTERVAL_S
    with pytest.raises(Exception, match="broken"):
        asyncio.run(collect(failed.generate()))
    assert "4 more requests" in caplog.messages[1]


def series() -> set[str]:
    """The policies that the metric has a series of."""
    return {
        each.labels["policy"] for family in POLICY_FAILURES.collect() for each in family.samples
    }


@pytest.mark.parametrize(
    "forged",
    [
        output("stop", wire.to_stop_reason(["broken"])),
        output("stop", wire.to_stop_reason(["made-up-by-a-client"])),
        failed_output("made-up-elsewhere"),
    ],
)
def test_no_client_can_forge_a_failure_or_make_a_series(
    forged: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    """A text that contains the engine's own words as a stop string is an answer as any other."""

    async def generate() -> AsyncIterator[Any]:
        yield forged

    before = series(), failures("broken")
    assert asyncio.run(collect(FailedPolicies(generate, MEMBERS).generate())) == [forged]
    assert (series() | {"broken"}, failures("broken")) == (before[0] | {"broken"}, before[1])
    assert caplog.messages == []


CONSTRAINED = ["json", "regex", "choice", "grammar", "structural_tag", "json_object"]


@pytest.mark.parametrize("field", CONSTRAINED)
def test_a_structured_output_that_allows_no_token_is_the_clients_error(
    field: str, caplog: pytest.LogCaptureFixture
) -> None:
    """vLLM ends such a request without a reason, for which it would answer 500."""
    params = SimpleNamespace(structured_outputs=SimpleNamespace(**{field: {}, "backend": "x"}))

    async def generate(prompt: str, sampling_params: Any, *, request_id: str) -> AsyncIterator[Any]:
        sampling_params.structured_outputs = SimpleNamespace(grammar="x")  # as vLLM does
        yield output()
        yield output("error")

    failed = FailedPolicies(generate, MEMBERS)
    for call in (
        lambda: failed.generate("hello", params, request_id="r"),
        lambda: failed.generate("hello", sampling_params=params, request_id="r"),
    ):
        params.structured_outputs = SimpleNamespace(**{field: {}})
        with pytest.raises(Exception, match=f"output's {field} .* allows no token") as it:
            asyncio.run(collect(call()))
        assert it.type.__name__ == "VLLMValidationError"
        assert getattr(it.value, "parameter", None) == "structured_outputs"
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("ended", "constraint"),
    [(output("error"), None), (output("stop"), "a"), (output("error", "else"), "a")],
)
def test_other_ends_are_not_the_constraints(ended: SimpleNamespace, constraint: str | None) -> None:
    found = None if constraint is None else SimpleNamespace(regex=constraint)
    params = SimpleNamespace(structured_outputs=found)

    async def generate(*_: Any) -> AsyncIterator[Any]:
        yield ended

    assert asyncio.run(collect(FailedPolicies(generate, MEMBERS).generate("a", params))) == [ended]


def test_several_suspects_are_all_named() -> None:
    async def generate() -> AsyncIterator[Any]:
        yield failed_output("left", "right")

    before = failures("left"), failures("right")
    with pytest.raises(Exception, match="one of the policies 'left', 'right'"):
        asyncio.run(collect(FailedPolicies(generate, MEMBERS).generate()))
    assert (failures("left"), failures("right")) == (before[0] + 1, before[1] + 1)


def test_the_engine_is_told_at_once_when_the_reader_goes() -> None:
    """Closing the outer generator must close the engine's, which aborts the request there."""
    ended: list[str] = []

    async def generate() -> AsyncIterator[Any]:
        try:
            while True:
                yield output()
        finally:
            ended.append("aborted")

    async def scenario() -> None:
        outputs = FailedPolicies(generate, MEMBERS).generate()
        await anext(outputs)
        await outputs.aclose()  # type: ignore[attr-defined]
        assert ended == ["aborted"]

    asyncio.run(scenario())
