"""Constraints are refused by their size before vLLM compiles them, and compile behind the steps."""

from __future__ import annotations

import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from prefmix.mixing.engine import grammar_limits, request_limits
from prefmix.mixing.engine.grammar_limits import check_grammar, lower_priority
from prefmix.mixing.engine.request_limits import check_all_requests

pytestmark = pytest.mark.usefixtures("vllm")

WORDS = [f"w{at}" for at in range(60_000)]
LONG = "a?" * 1025


def params(**constraint: Any) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    return SamplingParams(structured_outputs=StructuredOutputsParams(**constraint))


def properties(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {word: {} for word in WORDS[:count]}}


@pytest.mark.parametrize(
    ("constraint", "says"),
    [
        ({"regex": LONG}, "regex has more than 2048 characters"),
        ({"grammar": 'root ::= "a"' + ' "a"?' * 2000}, "grammar has more than 8192"),
        ({"choice": WORDS}, "choice has more than"),
        ({"json": {"enum": WORDS}}, "json has more than 131072 characters"),
        ({"json": json.dumps({"enum": WORDS})}, "json has more than 131072 characters"),
        ({"json": properties(2049)}, "2048 properties"),
        ({"json": {"items": [properties(2000), properties(2000)]}}, "2048 properties"),
        ({"json": {"properties": {"a": {"pattern": LONG}}}}, "2048 characters of patterns"),
        ({"json": {"patternProperties": {LONG: {}}}}, "2048 characters of patterns"),
        ({"json": {"pattern": LONG[:1500], "not": {"pattern": LONG[:1500]}}}, "of patterns"),
        ({"json": {"type": "array", "minItems": 10**9}}, "10000 repetitions"),
        ({"json": {"items": {"type": "array", "maxItems": 1e30}}}, "10000 repetitions"),
        ({"json": {"type": "string", "pattern": "a{3,20000}"}}, "10000 repetitions"),
        ({"json": {"patternProperties": {"a{20000}": {}}}}, "10000 repetitions"),
        ({"regex": "(a{ 2, " + "9" * 400 + "})+"}, "regex has more than 10000 repetitions"),
        ({"grammar": 'root ::= "a"{,10001}'}, "grammar has more than 10000 repetitions"),
        ({"json": {"anyOf": [{"maxItems": 10_000}] * 11}}, "100000 repetitions in all"),
        ({"grammar": 's: %json {"minItems": 9999}' * 11}, "100000 repetitions in all"),
        ({"grammar": 'start: %json {"type":"array","maxItems":10000000}'}, "10000 repetitions"),
        ({"grammar": 'start: %json\n{"items":{"min\\u0049tems":10001}}'}, "10000 repetitions"),
        ({"grammar": 'start: %json {} a\na: %json {"maxItems": 10001}'}, "10000 repetitions"),
        ({"grammar": 'start: %json {{{ {"maxItems": 10001}'}, "10000 repetitions"),
        (
            {"json": {"type": "object", "properties": {}, "patternProperties": {"a": {}}}},
            "patternP",
        ),
        ({"json": {"patternProperties": {"a": {}}, "minimum": "x", "type": "integer"}}, "patternP"),
        ({"structural_tag": json.dumps({"format": {"regex": LONG}})}, "of patterns"),
        ({"structural_tag": json.dumps({"format": {"grammar": LONG * 5}})}, "of grammars"),
        (
            {"structural_tag": json.dumps({"format": {"grammar": 's: %json {"minItems": 20000}'}})},
            "10000 repetitions",
        ),
    ],
)
def test_a_constraint_that_is_too_large_is_refused(constraint: dict[str, Any], says: str) -> None:
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError) as refused:
        check_grammar(params(**constraint))
    assert says in str(refused.value)
    assert refused.value.parameter == "structured_outputs"
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "constraint",
    [
        {"regex": LONG[:2048]},
        {"grammar": 'root ::= "a"'},
        {"grammar": 'start: %json {"type":"array","maxItems":10000} | "{" /%json/ "}"'},
        {"grammar": "start: %json " + '{"a":' * 1600},
        {"regex": "(a{3,10000}|b{00000000007}|c{,}|[{}]{99999x})"},
        {"json": {"properties": {"minItems": {"type": "array", "minItems": 10_000}}}},
        {"choice": WORDS[:8000]},
        {"json": properties(2048)},
        {"json": {"anyOf": [{"maxItems": 10_000}] * 10}},
        {"json": "not JSON, which vLLM says itself"},
        {"json": {"enum": WORDS[:10_000]}},
        {"json": {"properties": {"pattern": {"type": "string", "pattern": "a+"}}}},
        {"json": {"type": "string", "minLength": 2, "maxLength": 65535}},
        {"json": {"type": "object", "patternProperties": {"^a": {"type": "string"}}}},
        {"json": {"type": "array", "uniqueItems": True}},
        {"json_object": True},
    ],
)
def test_others_are_vllms_to_check(constraint: dict[str, Any]) -> None:
    check_grammar(params(**constraint))


def test_the_check_comes_before_vllms_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own check compiles the constraint, in the event loop."""
    order: list[str] = []

    class InputProcessor:
        def process_inputs(self, request_id: str, prompt: str, params: Any) -> Any:
            order.append("vllm")
            return SimpleNamespace(sampling_params=None, prompt_token_ids=[])

    module = ModuleType("requests are made here")
    module.InputProcessor = InputProcessor  # type: ignore[attr-defined]
    monkeypatch.setattr(request_limits, "REQUESTS_MODULE", module.__name__)
    monkeypatch.setattr(request_limits, "check_grammar", lambda _: order.append("size"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    check_all_requests()
    InputProcessor().process_inputs("r", "Hi.", params(regex="a"))
    assert order == ["size", "vllm"]
    InputProcessor().process_inputs(request_id="r", prompt="Hi.", params=params(regex="a"))
    assert order == ["size", "vllm"] * 2


@pytest.fixture
def checks_before(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """vLLM's check by compiling, with ours before it. Returns: the constraints that came to it."""
    from vllm.v1.structured_output import backend_xgrammar

    compiled: list[str] = []
    monkeypatch.setattr(
        backend_xgrammar,
        "validate_xgrammar_grammar",
        lambda params: compiled.append(str(params.structured_outputs)),
    )
    request_limits._check_before_compiling()
    request_limits._check_before_compiling()
    return compiled


def test_a_structural_tag_is_checked_before_a_body_is_validated_with_it(
    checks_before: list[str],
) -> None:
    """One of 1 MB would take the process 4 s and 450 MiB."""
    from vllm.entrypoints.generate.base.protocol import validate_structured_outputs_structural_tag
    from vllm.exceptions import VLLMValidationError

    def validate(pattern: str) -> None:
        tag = {"type": "structural_tag", "format": {"type": "regex", "pattern": pattern}}
        validate_structured_outputs_structural_tag({"structural_tag": json.dumps(tag)})

    validate("a?" * 9)
    assert len(checks_before) == 1
    with pytest.raises(VLLMValidationError) as refused:
        validate("a?" * 500_000)
    assert "more than 131072 characters" in str(refused.value.__cause__)
    assert len(checks_before) == 1


def test_what_vllm_refuses_itself_names_the_field(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    def refuse(self: Any, _: object) -> None:
        raise VLLMValidationError("Unimplemented keys")

    monkeypatch.setattr(SamplingParams, "_validate_structured_outputs", refuse)
    request_limits._name_the_constraint()
    with pytest.raises(VLLMValidationError, match="Unimplemented keys") as refused:
        SamplingParams()._validate_structured_outputs(None)
    assert refused.value.parameter == "structured_outputs"


NAMED = {"type": "function", "function": {"name": "a"}}


@pytest.mark.parametrize("tool_choice", ["required", NAMED, "auto"])
@pytest.mark.parametrize("tool_parser", ["hermes", "llama3_json", "pythonic"])
@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        (properties(2049), "2048 properties"),
        ({"type": "object", "properties": {"a": {"pattern": LONG}}}, "of patterns"),
        ({"type": "object", "properties": {"a": {"type": "array", "minItems": 10**9}}}, "repet"),
    ],
)
def test_what_vllm_makes_of_tools_has_the_limits(
    checks_before: list[str], tool_choice: Any, tool_parser: str, parameters: Any, says: str
) -> None:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.exceptions import VLLMValidationError
    from vllm.parser import ParserManager

    tool = {"type": "function", "function": {"name": "a", "parameters": parameters, "strict": True}}
    request = ChatCompletionRequest(
        messages=[{"role": "user", "content": "a"}], tools=[tool], tool_choice=tool_choice
    )
    made = ParserManager.get_parser(tool_parser_name=tool_parser, enable_auto_tools=True)
    tokenizer = SimpleNamespace(get_vocab=lambda: {"<|python_tag|>": 5})
    adjusted = made(tokenizer, request.tools).adjust_request(request)
    sent = adjusted.to_sampling_params(9, {})
    assert checks_before == []
    if sent.structured_outputs is None:
        assert tool_choice == "auto", "the tools constrain nothing"
        return
    with pytest.raises(VLLMValidationError, match=says):
        check_grammar(sent)


def test_a_constraint_beside_tools_is_checked_before_it_is_compiled(
    checks_before: list[str],
) -> None:
    from vllm.parser.abstract_parser import _xgrammar_supports

    assert _xgrammar_supports(params(regex="a").structured_outputs)
    assert len(checks_before) == 1
    assert not _xgrammar_supports(params(regex=LONG).structured_outputs)
    assert len(checks_before) == 1


def test_compilation_gets_what_the_steps_leave() -> None:
    manager = SimpleNamespace(executor=ThreadPoolExecutor(3))
    lower_priority(manager)
    assert manager.executor._max_workers == 3

    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def of_a_thread_of_its_own() -> int:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(priority()))
        thread.start()
        thread.join()
        return found[0]

    mine = priority()
    with manager.executor as executor:
        assert executor.submit(priority).result() == grammar_limits._LOWEST_PRIORITY
        assert executor.submit(of_a_thread_of_its_own).result() == grammar_limits._LOWEST_PRIORITY
    assert priority() == mine
    lower_priority(SimpleNamespace())  # an engine without a tokenizer
