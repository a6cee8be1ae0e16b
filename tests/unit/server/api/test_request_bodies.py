"""vLLM's bodies are validated within bounds: of numbers, of items, of time and of memory."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from prefmix.server.http.body_limits import TEMPLATE_ARGUMENTS
from prefmix.server.http.errors import MAX_MESSAGE_CHARS
from prefmix.server.telemetry.metrics import NO_PROFILE, REQUESTS
from support.text_requests import GOOD, Answer, post, text_app

pytestmark = pytest.mark.usefixtures("vllm")

STALL_S = 0.25
TRIES = 5
GROWN_BYTES = 64 * 2**20
BODY_BYTES = 4 * 2**20 - 100
USER = {"role": "user", "content": "Hi."}
CALL = {"type": "function_call_output", "call_id": "a", "output": "{}"}
TEXT_PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/responses")


@pytest.fixture(scope="module")
def app(vllm: None) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        app = text_app(patch.setattr)
        gc.freeze()  # as vLLM's server does, so that no collection visits all of its modules
        yield app
        gc.unfreeze()


def refused(answer: Answer, param: str | None) -> str:
    assert answer.response.status_code == 400, answer.response.text[:1000]
    error = answer.error
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert len(error["message"]) < 500
    assert "\n" not in error["message"]
    return str(error["message"])


@pytest.mark.parametrize("path", GOOD)
def test_a_good_body_reaches_its_handler(app: Any, path: str) -> None:
    answer = post(app, path, GOOD[path])
    assert answer.response.status_code == 200
    assert "x-prefmix-ignored-fields" not in answer.response.headers


@pytest.mark.parametrize(
    ("path", "body", "param", "parts"),
    [
        ("/v1/responses", {"input": [{}]}, "input", ["input[0]"]),
        ("/v1/responses", {"input": [USER, CALL, {}]}, "input", ["input[2]"]),
        ("/v1/chat/completions", {"messages": [{}]}, "messages", ["messages[0]", "missing"]),
        ("/v1/chat/completions", {"messages": [USER, 5]}, "messages", ["messages[1] is 5"]),
        ("/v1/chat/completions", {"messages": 5}, "messages", ["messages is 5", "list"]),
        ("/v1/chat/completions", {}, "messages", ["messages is missing"]),
        ("/tokenize", {"messages": [USER, {}]}, "messages", ["messages[1]"]),
        ("/tokenize", {"messages": [USER], "tools": 5}, "tools", ["tools is 5"]),
        ("/detokenize", {"tokens": [5, 1.5]}, "tokens", ["tokens[1] is 1.5"]),
        ("/v1/completions", {"prompt": ["a", 5]}, "prompt", ["prompt[1] is 5", "string"]),
        ("/v1/completions", {"prompt": ["a"] * 1025}, "prompt", ["1025", "1024"]),
    ],
)
def test_the_first_wrong_item_is_named(
    app: Any, path: str, body: Any, param: str | None, parts: list[str]
) -> None:
    message = refused(post(app, path, body), param)
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ({"vllm_xargs": {"a": None}}, ["vllm_xargs.a is null", "string", "number", "list"]),
        ({"vllm_xargs": {"own": 1, "a": {"b": 1}}}, ['vllm_xargs.a is {"b": 1}; expected a']),
        ({"vllm_xargs": {"str": [1, [2]]}}, ["vllm_xargs.str[1] is [2]; expected a valid string"]),
        ({"vllm_xargs": {"prefmix_weights": {"a": 1}}}, ['vllm_xargs.prefmix_weights is {"a": 1}']),
        ({"vllm_xargs": {"x" * 999: None}}, [f"vllm_xargs.{'x' * 40} is null"]),
        ({"vllm_xargs": {"a\nb": None}}, ["vllm_xargs.a b is null"]),
        ({"vllm_xargs": [1]}, ["vllm_xargs is [1]; expected an object"]),
        ({"logit_bias": {"5": "x"}}, ["logit_bias.5 is 'x'; expected a valid number"]),
        ({"response_format": {"type": "x"}}, ["response_format.type is 'x'", "'json_schema'"]),
        ({"structured_outputs": {"choice": ["a", 5]}}, ["structured_outputs.choice[1] is 5"]),
    ],
)
def test_the_wrong_part_of_an_object_is_named(
    app: Any, path: str, body: dict[str, Any], parts: list[str]
) -> None:
    for more in ({}, {"user": "x" * 20_000}):  # a large body is validated in a thread
        message = refused(post(app, path, {**GOOD[path], **body, **more}), next(iter(body)))
        assert [part for part in parts if part not in message] == []


INTEGERS = {
    "/v1/completions": (
        *("top_k", "seed", "n", "max_tokens", "min_tokens", "logprobs", "prompt_logprobs"),
        *("stream_interval", "priority", "truncate_prompt_tokens", "thinking_token_budget"),
        "routed_experts_prompt_start",
    ),
    "/v1/chat/completions": (
        *("top_k", "seed", "n", "max_tokens", "max_completion_tokens", "min_tokens"),
        *("top_logprobs", "prompt_logprobs", "stream_interval", "priority"),
        *("truncate_prompt_tokens", "thinking_token_budget", "routed_experts_prompt_start"),
    ),
    "/v1/responses": ("top_k", "seed", "max_output_tokens", "max_tool_calls", "top_logprobs"),
}


@pytest.mark.parametrize(
    ("path", "field"), [(path, field) for path, fields in INTEGERS.items() for field in fields]
)
def test_every_integer_has_64_bits(app: Any, path: str, field: str) -> None:
    for value in (2**63, 2**64, -(2**63) - 1, 10**30, str(2**64), 1e19):
        message = refused(post(app, path, {**GOOD[path], field: value}), field)
        assert field in message


@pytest.mark.parametrize("path", TEXT_PATHS)
@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("vllm_xargs", {"own": 2**64}, "vllm_xargs.own is 18446744073709551616"),
        ("vllm_xargs", {"own": ["a", 1, -(2**63) - 1]}, "vllm_xargs.own[2] is -9223"),
        ("kv_transfer_params", {"a": [{"b": 2**64}]}, "kv_transfer_params.a[0].b is 1844"),
        ("chat_template_kwargs", {"a": 2**64}, "chat_template_kwargs.a is 1844"),
        ("stop_token_ids", [1, 2**64], "stop_token_ids[1] is 1844"),
        ("logit_bias", {"5": 2**64}, "logit_bias.5 is 1844"),
        ("structured_outputs", {"json": {"maximum": 2**64}}, "structured_outputs.json.maximum"),
    ],
)
def test_nested_integers_have_64_bits(
    app: Any, path: str, field: str, value: Any, name: str
) -> None:
    message = refused(post(app, path, {**GOOD[path], field: value}), field)
    assert message.startswith(name)


def test_weights_may_have_any_size(app: Any) -> None:
    body = {"prompt": "Hi.", "preference_weights": {"a": 10**20, "b": 10**20}}
    answer = post(app, "/v1/completions", body)
    assert answer.response.headers["x-prefmix-weights"] == "a=0.5,b=0.5"


def test_token_ids_fit_what_a_tokenizer_holds(app: Any) -> None:
    assert post(app, "/detokenize", {"tokens": [2**32 - 1]}).response.status_code == 200
    refused(post(app, "/detokenize", {"tokens": [2**32]}), "tokens")


@pytest.mark.parametrize(
    ("path", "body", "param", "limit"),
    [
        ("/v1/chat/completions", {"messages": [USER] * 4097}, "messages", "4096"),
        ("/tokenize", {"messages": [USER] * 4097}, "messages", "4096"),
        ("/v1/responses", {"input": [USER] * 2049}, "input", "2048"),
        ("/v1/responses", {"input": [{"content": [{}] * 1025}]}, "input", "1024"),
        ("/v1/chat/completions", {"messages": [USER], "tools": [{}] * 513}, "tools", "512"),
        ("/v1/completions", {"prompt": "a", "logit_bias": {str(i): 1 for i in range(1025)}},
         "logit_bias", "1024"),
        ("/v1/completions", {"prompt": "a", "allowed_token_ids": [5] * 1025},
         "allowed_token_ids", "1024"),
        ("/v1/completions", {"prompt": "a", "structured_outputs": {"choice": [None] * 8193}},
         "structured_outputs", "8192"),
        ("/v1/completions", {str(i): 1 for i in range(257)}, None, "256"),
    ],
)  # fmt: skip
def test_counts_have_limits(app: Any, path: str, body: Any, param: str | None, limit: str) -> None:
    assert limit in refused(post(app, path, body), param)


def filled(path: str, field: str, item: Any) -> bytes:
    """A body of nearly 4 MiB whose field is a list of one item."""
    body = json.dumps({**GOOD[path], field: ["HERE"]}).encode()
    unit = json.dumps(item).encode() + b","
    return body.replace(b'"HERE"', (unit * (BODY_BYTES // len(unit)))[:-1])


HEAVY = [
    ("/v1/responses", {"input": [{}] * 1400}),
    ("/v1/chat/completions", {"messages": [{}] * 14000}),
    ("/tokenize", {"messages": [{}] * 14000}),
    ("/v1/responses", {"input": [USER] * 2048}),
    ("/v1/responses", {"input": [CALL] * 2048}),
    ("/v1/chat/completions", {"messages": [USER] * 4096}),
    ("/v1/completions", {"prompt": "a", "vllm_xargs": {"a": [{}] * 30000}}),
    ("/v1/completions", {"prompt": "a", "structured_outputs": {"choice": [None] * 8192}}),
    ("/v1/completions", {"prompt": "a", **{str(i): 1 for i in range(60000)}}),
    ("/v1/completions", {"prompt": "a", "kv_transfer_params": {"a": [[7] * 1000] * 260}}),
    *((path, filled(path, field, item))
      for path, field in (("/v1/completions", "prompt"), ("/v1/chat/completions", "messages"),
                          ("/v1/responses", "input"), ("/detokenize", "tokens"))
      for item in ({}, [], "ab", 257, 1.5, 2**64, USER)),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body"), HEAVY)
def test_no_body_stalls_the_event_loop_or_fills_memory(app: Any, path: str, body: Any) -> None:
    # On a busy machine the event loop's thread may wait for a processor; a stall comes every time.
    stalls = []
    for _ in range(TRIES):
        answer = post(app, path, body)
        assert answer.response.status_code in (200, 400)
        assert answer.grown_bytes < GROWN_BYTES
        stalls.append(answer.stall_s)
        if answer.stall_s < STALL_S:
            break
    assert min(stalls) < STALL_S


@pytest.mark.parametrize("path", TEXT_PATHS)
def test_a_body_is_taken_alike_in_the_loop_and_in_a_thread(app: Any, path: str) -> None:
    for more in ({}, {"user": "x" * 20_000}):
        good = post(app, path, {**GOOD[path], **more, "preference_weights": {"a": 1}, "own": 1})
        assert good.response.headers["x-prefmix-weights"] == "a=1,b=0"
        assert good.response.headers["x-prefmix-ignored-fields"] == "own"
        assert good.response.json()["reached"].startswith("Mixture")
        refused(post(app, path, {**GOOD[path], **more, "top_k": "x"}), "top_k")
        refused(post(app, path, {**GOOD[path], **more, "preference_weigths": {}}),
                "preference_weigths")  # fmt: skip


def test_a_refused_body_is_counted(app: Any) -> None:
    counter = REQUESTS.labels(NO_PROFILE, "rejected")
    before = counter._value.get()
    for body in ({"prompt": ["a"] * 1025}, {"prompt": "a", "profile": "x"}, {"top_k": 2**64}, "{"):
        content = body if isinstance(body, str) else json.dumps(body)
        refused_at = counter._value.get()
        assert post(app, "/v1/completions", content.encode()).response.status_code == 400
        assert counter._value.get() == refused_at + 1
    assert counter._value.get() == before + 4


TRANSFER = {"do_remote_prefill": False, "blocks": [["x" * 38] for _ in range(30_000)]}


@pytest.mark.parametrize("path", TEXT_PATHS[:2])
@pytest.mark.parametrize("field", ["kv_transfer_params", "ec_transfer_params"])
def test_what_no_connector_reads_is_refused_at_once(app: Any, path: str, field: str) -> None:
    answer = post(app, path, {**GOOD[path], field: TRANSFER})
    assert "no connector" in refused(answer, field)
    assert answer.stall_s < STALL_S
    assert answer.grown_bytes < GROWN_BYTES
    for nothing in (None, {}):
        assert post(app, path, {**GOOD[path], field: nothing}).response.status_code == 200


@pytest.mark.parametrize("path", TEXT_PATHS)
@pytest.mark.parametrize(
    ("xargs", "parts"),
    [
        ({"kv_transfer_params": "x"}, ["kv_transfer_params", "a field of the body"]),
        ({"ec_transfer_params": ["x"]}, ["ec_transfer_params"]),
        ({"mine": [1] * 5000}, ["vllm_xargs.mine", "5000 items", "4096"]),
        ({"mine": "x" * 70_000}, ["vllm_xargs.mine", "70000 characters", "65536"]),
    ],
)
def test_what_the_engine_copies_is_small(app: Any, path: str, xargs: Any, parts: list[str]) -> None:
    message = refused(post(app, path, {**GOOD[path], "vllm_xargs": xargs}), "vllm_xargs")
    assert [part for part in parts if part not in message] == []


def test_no_more_token_ids_are_decoded_than_a_prompt_can_have(app: Any) -> None:
    assert post(app, "/detokenize", {"tokens": [5] * 64}).response.status_code == 200
    answer = post(app, "/detokenize", {"tokens": [5] * 200_000})
    message = refused(answer, "tokens")
    assert "200000 items" in message
    assert "64" in message
    assert answer.stall_s < STALL_S


@pytest.mark.parametrize("path", TEXT_PATHS)
@pytest.mark.parametrize("field", ["request_id", "session_id"])
def test_ids_that_go_to_the_engine_are_short(app: Any, path: str, field: str) -> None:
    assert post(app, path, {**GOOD[path], field: "x" * 512}).response.status_code == 200
    message = refused(post(app, path, {**GOOD[path], field: "x" * 2 * 10**6}), field)
    assert message == f"{field} has 2000000 characters; this server takes at most 512"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
def test_arguments_of_the_templates_caller_are_no_variables(app: Any, path: str) -> None:
    """Else one could order a padding of a billion tokens."""
    from vllm.renderers import hf

    called = [hf.safe_apply_chat_template, PreTrainedTokenizerBase.apply_chat_template]
    names = {name for each in called for name in inspect.signature(each).parameters}
    fields = {"tools", "documents", "add_generation_prompt", "continue_final_message", "kwargs"}
    assert names - fields <= TEMPLATE_ARGUMENTS
    body = {"messages": [USER]}
    for name in sorted(TEMPLATE_ARGUMENTS):
        answer = post(app, path, {**body, "chat_template_kwargs": {name: []}})
        message = refused(answer, "chat_template_kwargs")
        assert message.startswith(f"chat_template_kwargs has {name};")
    for given in ({"enable_thinking": True}, {"tools": []}, None):
        answer = post(app, path, {**body, "chat_template_kwargs": given})
        assert answer.response.status_code == 200


def repeated_by_vllm(text: str) -> list[str]:
    """The messages of errors that vLLM itself makes of a client's text."""
    from fastapi import HTTPException
    from jinja2 import TemplateError
    from vllm.entrypoints.generate.base.serving import GenerateBaseServing
    from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
    from vllm.entrypoints.serve.exception_handling.handlers.http import http_exception_handler

    args = SimpleNamespace(log_error_stack=False)
    request: Any = SimpleNamespace(app=SimpleNamespace(state=SimpleNamespace(args=args)))
    handled = asyncio.run(http_exception_handler(request, HTTPException(404, text)))
    of_a_stream = GenerateBaseServing.create_streaming_error_response
    serving: Any = SimpleNamespace(create_error_response=create_error_response)
    bodies = [
        create_error_response(TemplateError(text)).model_dump(),
        create_error_response(text).model_dump(),
        json.loads(bytes(handled.body)),
        json.loads(of_a_stream(serving, ValueError(text))),
    ]
    return [body["error"]["message"] for body in bodies]


UNITS = ["x", "/a", "/", "/a.", "/-", "/tmp/a ", "/abcdefgh/a-b", "/a/a/a/a/a/a/a ", ' File "a']


@pytest.mark.parametrize("unit", UNITS)
def test_what_vllm_repeats_is_cut(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before vLLM looks for paths in it, which would keep the event loop for hours."""
    from prefmix.server.api import vllm_handlers

    vllm_handlers.bound_messages(monkeypatch.setattr)
    repeated_by_vllm("x")  # all is imported
    began = time.process_time()
    messages = repeated_by_vllm(unit * 100_000)
    assert time.process_time() - began < len(messages) * STALL_S / 5
    for message in messages:
        assert len(message) <= MAX_MESSAGE_CHARS
        assert "characters left out)" in message
        assert "/tmp" not in message


def test_half_a_surrogate_pair_in_a_message_of_vllms_can_be_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prefmix.server.api import vllm_handlers

    vllm_handlers.bound_messages(monkeypatch.setattr)
    for message in repeated_by_vllm("resp_\ud800"):
        assert message.encode().decode() == "resp_\\ud800"


def test_flags_that_a_message_of_vllms_asks_for_have_their_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prefmix.server.api import vllm_handlers

    vllm_handlers.bound_messages(monkeypatch.setattr)
    asks = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
    place = "vLLM's flags stand after '--' in the command: prefmix serve ... -- "
    for message in repeated_by_vllm(asks):
        assert message == f"{asks}; {place}--enable-auto-tool-choice --tool-call-parser"
    for message in repeated_by_vllm("a dash -- or two, as in x--y, is no flag"):
        assert place not in message


def test_no_more_text_becomes_tokens_than_a_prompt_can_have() -> None:
    from vllm.exceptions import VLLMValidationError

    from prefmix.server.api import schemas

    config = SimpleNamespace(max_model_len=64)
    for made in (
        schemas.BoundedTokenizeCompletionRequest(prompt="x"),
        schemas.BoundedTokenizeChatRequest(messages=[USER]),
    ):
        params = made.build_tok_params(config)
        assert params.max_total_tokens == 64
        tokenizer = SimpleNamespace(max_chars_per_token=8)
        params.apply_pre_tokenization(tokenizer, {"prompt": "x" * 512})
        with pytest.raises(VLLMValidationError, match="maximum context length is 64"):
            params.apply_pre_tokenization(tokenizer, {"prompt": "x" * 513})


@pytest.mark.filterwarnings("ignore:max_tokens is deprecated")
@pytest.mark.parametrize(("side", "kept"), [("left", "bbb"), ("right", "aaa")])
def test_a_prompt_that_is_truncated_is_cut_before_it_becomes_tokens(side: str, kept: str) -> None:
    from prefmix.server.api import schemas

    config = SimpleNamespace(max_model_len=64)
    tokenizer = SimpleNamespace(max_chars_per_token=8, truncation_side=side)
    text = "a" * 1000 + "b" * 1000
    for made in (
        schemas.MixtureCompletionRequest(prompt=text, truncate_prompt_tokens=3),
        schemas.MixtureChatCompletionRequest(messages=[USER], truncate_prompt_tokens=-1),
        schemas.MixtureResponsesRequest(input="x", truncation="auto"),
    ):
        params = made.build_tok_params(config)
        cut = params.apply_pre_tokenization(tokenizer, {"prompt": text})["prompt"]
        assert len(cut) == 64 * 8
        assert cut.startswith(kept)
        assert params.apply_pre_tokenization(tokenizer, {"prompt": "aab"})["prompt"] == "aab"


@pytest.mark.filterwarnings("ignore:max_tokens is deprecated")
@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"type": "x"}, "content[0]: text is missing"),
        ("a", "content[0] is 'a'; expected an object"),
    ],
)
def test_a_part_that_is_validated_late_is_named_in_a_sentence(part: Any, says: str) -> None:
    from prefmix.server.api import schemas, vllm_handlers

    message = {"role": "user", "content": [part]}
    body = schemas.MixtureChatCompletionRequest(messages=[message])
    with pytest.raises(ValueError, match="ValidatorIterator") as raised:
        list(body.messages[0]["content"])  # type: ignore[arg-type]
    told = str(vllm_handlers._in_a_sentence(raised.value))
    assert told.startswith("a message is wrong: ")
    assert says in told
    assert "\n" not in told
    other = RuntimeError("ours")
    assert vllm_handlers._in_a_sentence(other) is other
