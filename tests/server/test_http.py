"""One real `prefmix serve` on tiny random policies: every route, every refusal, no bypass."""

from __future__ import annotations

import asyncio
import json
import math
import re
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from prefmix.mixing.candidates import pick
from support.admin_server import wait
from support.checkpoints.tiny_policies import VOCAB_SIZE
from support.preloaded_server import Preloaded
from support.server_process import API_KEY, ServerProcess, engine_flags

POLICIES = ("one", "two", "three")
UNIFORM = "one=0.333333333,two=0.333333333,three=0.333333333"
MAX_MODEL_LEN = 256


@pytest.fixture(scope="module")
def server(
    policies: list[Path], tmp_path_factory: pytest.TempPathFactory, preloaded: Preloaded
) -> Iterator[Any]:
    """The server of this module. Its end is a test too: one signal, code 0, nothing left."""
    folder = tmp_path_factory.mktemp("server")
    config = {
        "policies": {path.name: str(path) for path in policies},
        "profiles": {"even": dict.fromkeys(POLICIES, 1), "solo": {"two": 1}},
        "default_profile": "even",
        "engine": {"api_key": API_KEY},
    }
    (folder / "mixture.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    running = ServerProcess(
        folder, [str(folder / "mixture.yaml"), *engine_flags()], preloaded=preloaded
    )
    try:
        yield running.wait_ready()
        code = running.end(signal.SIGTERM)
        assert (code, running.survivors()) == (0, []), running.stderr
        assert "Traceback" not in running.stderr
        assert "rror" not in running.stderr
    finally:
        running.kill()


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def official(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0) as client:
        yield client


def complete(client: httpx.Client, **body: Any) -> httpx.Response:
    """POSTs a small completion; the body may hold NaN and Infinity, which Python's JSON writes."""
    body = {"prompt": "the quick brown", "max_tokens": 6, "temperature": 0, **body}
    headers = {"Content-Type": "application/json"}
    return client.post("/v1/completions", content=json.dumps(body), headers=headers)


def text(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["text"])


def refused(
    response: httpx.Response, status: int = 400, *, one_line: bool = True
) -> dict[str, Any]:
    """The error of a refusal, after checks of its shape."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] == status
    assert "\n" not in body["error"]["message"] or not one_line
    error: dict[str, Any] = body["error"]
    return error


# --- answers -------------------------------------------------------------------------------------


def test_start_prints_one_table_and_one_request_and_nothing_else(server: ServerProcess) -> None:
    server.wait_printed("-d '{")  # the last line
    table, request = server.stdout.split("\n\ntry it:\n\n")
    assert request.startswith(f"curl {server.url}/v1/chat/completions ")
    assert "Bearer $PREFMIX_API_KEY" in request
    rows = [line.split() for line in table.splitlines() if line]
    assert rows[0] == ["policy", "parameters", "weight", "model"]
    assert [row[0] for row in rows[1:4]] == list(POLICIES)
    assert all(row[2] == "0.333" for row in rows[1:4])
    facts = {row[0]: " ".join(row[1:]) for row in rows[4:]}
    assert re.match(
        r"each policy and their mixture drew \d+ tokens in \d+\.\d s", facts.pop("self-check")
    )
    assert facts == {
        "model": "prefmix (simplex weights)",
        "profiles": "even (default), solo",
        "url": server.url,
        "open": "inference with API key, metrics, health, docs, console",
        "console": f"{server.url}/console",
    }
    words = shlex.split(request.replace("$PREFMIX_API_KEY", API_KEY))
    assert words[0] == "curl"
    headers = dict(words[at + 1].split(": ") for at, word in enumerate(words) if word == "-H")
    answer = httpx.post(words[1], content=words[words.index("-d") + 1], headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] > 0
    assert all(line.startswith("prefmix: ") for line in server.stderr.splitlines()), server.stderr


def test_a_browser_comes_to_the_console_and_a_program_to_what_is_served(
    server: ServerProcess,
) -> None:
    """Every link leads somewhere, and none names a host."""
    with server.client(key=None) as stranger:
        sent = stranger.get("/", headers={"accept": "text/html,*/*;q=0.8"})
        assert (sent.status_code, sent.headers["location"]) == (302, "/console")
        links = stranger.get("/").json()["links"]
    assert links.pop("api") == "/v1"
    assert {"mixture", "metrics", "ready", "docs", "console"} <= links.keys()
    with server.client() as client:
        for path in links.values():
            wanted = 405 if path in ROUTES else 200
            assert client.get(path, follow_redirects=True).status_code == wanted, path


def test_the_official_client_lists_the_mixture_and_its_profiles(official: openai.OpenAI) -> None:
    cards = {card.id: card.model_dump() for card in official.models.list()}
    assert list(cards) == ["prefmix", "prefmix@even", "prefmix@solo"]
    assert cards["prefmix@solo"]["parent"] == "prefmix"
    assert {card["max_model_len"] for card in cards.values()} == {MAX_MODEL_LEN}
    assert {card["root"] for card in cards.values()} == {"prefmix"}, "no policy's path"


def test_mixture_shows_what_is_loaded(client: httpx.Client, policies: list[Path]) -> None:
    mixture = client.get("/v1/mixture").json()
    shown = {"revision": None, "has_prompt": False}
    models = [{"name": path.name, "model": str(path), **shown} for path in policies]
    assert (mixture["policies"], mixture["request_prompts"]) == (models, False)
    assert (mixture["reference"], mixture["weight_space"]) == (None, "simplex")
    assert mixture["vocabulary"] == {"size": VOCAB_SIZE, "never_drawn": 0}
    assert (mixture["default_profile"], mixture["version"]) == ("even", 1)
    assert mixture["profiles"]["solo"] == {"weights": {"one": 0.0, "two": 1.0, "three": 0.0}}
    assert len(mixture["sha256"]) == 64


@pytest.mark.parametrize(
    ("fields", "profile", "weights"),
    [
        ({}, "even", UNIFORM),
        ({"model": "prefmix"}, "even", UNIFORM),
        ({"preference_profile": "solo"}, "solo", "one=0,two=1,three=0"),
        ({"model": "prefmix@solo"}, "solo", "one=0,two=1,three=0"),
        ({"preference_weights": {"one": 3, "three": 1}}, "custom", "one=0.75,two=0,three=0.25"),
        ({"vllm_xargs": {"prefmix_weights": [0, 0, 1]}}, "custom", "one=0,two=0,three=1"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_answers_report_the_weights_they_used(
    client: httpx.Client, fields: dict[str, Any], profile: str, weights: str, stream: bool
) -> None:
    response = complete(client, stream=stream, **fields)
    assert response.status_code == 200
    reported = [response.headers[f"x-prefmix-{name}"] for name in ("profile", "weights")]
    assert reported == [profile, weights]
    assert response.headers["x-prefmix-weights-version"] == "1"
    body = response.text.partition("data: ")[2].partition("\n")[0] if stream else response.text
    assert json.loads(body)["model"] == fields.get("model", "prefmix")
    pairs = [pair.split("=") for pair in weights.split(",")]
    assert json.loads(body)["prefmix"] == {
        "profile": profile,
        "weights": {name: float(weight) for name, weight in pairs},
        "weights_version": 1,
        "mixing": "logits",
    }


def test_every_way_to_say_the_same_weights_gives_the_same_text(client: httpx.Client) -> None:
    ways: list[dict[str, Any]] = [
        {"preference_profile": "solo"},
        {"model": "prefmix@solo"},
        {"preference_weights": {"two": 0.1}},
        {"vllm_xargs": {"prefmix_weights": [0, 1, 0]}},
    ]
    texts = {text(complete(client, max_tokens=16, **way)) for way in ways}
    assert len(texts) == 1


def test_weights_change_the_text(client: httpx.Client) -> None:
    corners = [{name: 1} for name in POLICIES]
    texts = {text(complete(client, max_tokens=16, preference_weights=way)) for way in corners}
    assert len(texts) == len(POLICIES)


def test_chat_completions_through_the_official_client(official: openai.OpenAI) -> None:
    answer = official.chat.completions.with_raw_response.create(
        model="prefmix",
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=5,
        logprobs=True,
        top_logprobs=2,
        extra_body={"preference_weights": {"one": 1, "two": 1}},
    )
    assert answer.headers["x-prefmix-weights"] == "one=0.5,two=0.5,three=0"
    parsed = answer.parse()
    assert parsed.usage is not None
    assert parsed.usage.completion_tokens <= 5
    logprobs = parsed.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert all(len(token.top_logprobs) == 2 for token in logprobs.content)


def test_a_streamed_chat_equals_the_whole_one(official: openai.OpenAI) -> None:
    settings: dict[str, Any] = {
        "model": "prefmix@solo",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 12,
        "temperature": 0,
    }
    whole = official.chat.completions.create(**settings).choices[0].message.content
    chunks = list(official.chat.completions.create(stream=True, **settings))
    assert {chunk.model for chunk in chunks} == {"prefmix@solo"}
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert len(pieces) > 2
    assert "".join(pieces) == whole


def test_responses_through_the_official_client(official: openai.OpenAI) -> None:
    answer = official.responses.with_raw_response.create(
        model="prefmix@solo", input="hello", max_output_tokens=8
    )
    assert answer.headers["x-prefmix-profile"] == "solo"
    assert answer.parse().object == "response"
    assert answer.parse().model == "prefmix@solo"


def test_a_response_that_is_not_kept_is_refused_with_the_way_out(client: httpx.Client) -> None:
    body = {"input": "go on", "previous_response_id": "resp_1"}
    error = refused(client.post("/v1/responses", json=body))
    assert error["param"] == "previous_response_id"
    assert "'resp_1', but this server keeps no responses" in error["message"]
    assert "`input`" in error["message"]


def test_a_refusal_that_asks_for_flags_says_where_they_stand(client: httpx.Client) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    error = refused(post(client, "/v1/chat/completions", tools=[tool]))
    flags = "--enable-auto-tool-choice --tool-call-parser"
    assert error["message"].endswith(
        f"stand after '--' in the command: prefmix serve ... -- {flags}"
    )


def test_several_answers_with_logprobs(client: httpx.Client) -> None:
    response = complete(client, n=2, temperature=1, seed=3, logprobs=3)
    choices = response.json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1]
    for choice in choices:
        assert all(logprob <= 0 for logprob in choice["logprobs"]["token_logprobs"])
        # Tokens that are no whole character are all written alike, so keys may coincide.
        assert all(1 <= len(top) <= 4 for top in choice["logprobs"]["top_logprobs"])


@pytest.mark.parametrize("chat", [False, True])
def test_one_of_the_candidates_is_the_answer(client: httpx.Client, chat: bool) -> None:
    """The pick is that of the `n` answers of the same seed, by their log partitions."""
    path = "/v1/chat/completions" if chat else "/v1/completions"
    asked = {"messages": [{"role": "user", "content": "the"}]} if chat else {"prompt": ["a", "b"]}
    body = {"temperature": 1, "seed": 5, "max_tokens": 12, "stop": ["weights"], **asked}
    every = client.post(path, json={**body, "n": 8, "preference_attribution": True}).json()
    answer = client.post(path, json={**body, "n": 2, "preference_candidates": 4})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["usage"] == every["usage"], "all candidates count as generated"
    assert len(found["choices"]) == len(every["choices"]) // 4
    sizes = []
    for index, choice in enumerate(found["choices"]):
        group = every["choices"][4 * index : 4 * index + 4]
        truth = pick(
            [each["preference_attribution"]["log_partition"] for each in group],
            seed=5,
            place=index % 2,
        )
        written = "message" if chat else "text"
        assert (choice["index"], choice[written]) == (index, group[truth.index][written])
        assert choice["token_ids"] is None
        about = choice["preference_candidates"]
        assert about["ess"] == pytest.approx(truth.ess, rel=1e-3)
        sizes.append(about["ess"])
    assert float(answer.headers["x-prefmix-ess"]) == pytest.approx(min(sizes), rel=1e-3)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"preference_candidates": 17}, "preference_candidates"),
        ({"preference_candidates": 2, "stream": True}, "stream"),
        ({"preference_candidates": 2, "temperature": 0.5}, "temperature"),
        ({"preference_candidates": 2, "temperature": 0}, "temperature"),
        ({"preference_candidates": 2, "top_k": 3}, "top_k"),
        (
            {"preference_candidates": 2, "structured_outputs": {"choice": ["a"]}},
            "structured_outputs",
        ),
        ({"preference_candidates": 16, "n": 999}, None),
    ],
)
def test_candidates_that_are_not_defined_are_refused(
    client: httpx.Client, fields: Any, param: str | None
) -> None:
    assert refused(complete(client, **{"temperature": 1, **fields}))["param"] == param


def test_echo_scores_the_prompt_under_the_given_weights(client: httpx.Client) -> None:
    def prompt_logprobs(weights: dict[str, float]) -> list[float]:
        response = complete(client, echo=True, logprobs=1, max_tokens=1, preference_weights=weights)
        values = response.json()["choices"][0]["logprobs"]["token_logprobs"]
        assert values[0] is None
        return [float(value) for value in values[1:-1]]

    first, second = prompt_logprobs({"one": 1}), prompt_logprobs({"two": 1})
    assert len(first) == len(second) > 0
    assert all(math.isfinite(value) and value <= 0 for value in (*first, *second))
    assert first != second
    assert prompt_logprobs({"one": 1}) == pytest.approx(first, abs=1e-4)


def test_structured_outputs_hold_for_any_weights(client: httpx.Client) -> None:
    for weights in ({"one": 1}, {"two": 1}, {"one": 1, "two": 1, "three": 1}):
        structure = {"choice": ["yes", "no"]}
        answer = complete(client, structured_outputs=structure, preference_weights=weights)
        assert text(answer) in ("yes", "no")


def test_stop_strings_end_the_text(client: httpx.Client) -> None:
    whole = text(complete(client, max_tokens=24, preference_profile="solo"))
    stop = whole[len(whole) // 2]
    choice = complete(client, max_tokens=24, preference_profile="solo", stop=stop).json()[
        "choices"
    ][0]
    assert choice["text"] == whole[: whole.index(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)


def test_concurrent_requests_keep_their_own_weights(server: ServerProcess) -> None:
    """The texts of 40 requests at once, more than can run, are those of each request alone."""
    mixes = [{"one": 1}, {"two": 1}, {"three": 1}, {"one": 1, "two": 2}, {"two": 1, "three": 3}]
    with server.client() as client:
        alone = [text(complete(client, max_tokens=20, preference_weights=mix)) for mix in mixes]
    assert len(set(alone)) == len(mixes)

    async def together() -> list[str]:
        headers = {"Authorization": f"Bearer {API_KEY}"}
        async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=120) as client:
            body = {"prompt": "the quick brown", "max_tokens": 20, "temperature": 0}
            posts = [
                client.post(
                    "/v1/completions",
                    json={**body, "preference_weights": mixes[index % len(mixes)]},
                )
                for index in range(40)
            ]
            return [text(response) for response in await asyncio.gather(*posts)]

    answers = asyncio.run(together())
    wrong = [index for index, answer in enumerate(answers) if answer != alone[index % len(mixes)]]
    assert wrong == []


def test_tokenize_and_detokenize_round_trip_under_every_name(client: httpx.Client) -> None:
    for model in ("prefmix", "prefmix@solo"):
        tokens = client.post("/tokenize", json={"model": model, "prompt": "quick fox"}).json()
        back = client.post("/detokenize", json={"model": model, "tokens": tokens["tokens"]})
        assert back.json()["prompt"] == "quick fox"


# --- the description of the API ------------------------------------------------------------------


def test_openapi_describes_the_fields_with_examples(client: httpx.Client) -> None:
    page = client.get("/openapi.json").json()
    assert page["info"]["title"] == "prefmix"
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/responses"):
        operation = page["paths"][path]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        fields = page["components"]["schemas"][schema["$ref"].rsplit("/")[-1]]["properties"]
        weights, profile = fields["preference_weights"], fields["preference_profile"]
        assert weights["anyOf"][0]["additionalProperties"] == {"type": "number"}
        assert weights["examples"] == [{"helpful": 3, "harmless": 1}]
        assert profile["anyOf"][0] == {"type": "string"}
        assert profile["examples"] == ["default"]
        assert all(field["description"] for field in (weights, profile))
        assert "x-prefmix-weights" in operation["responses"]["200"]["headers"]
    assert "/v1/mixture" in page["paths"]
    assert "/invocations" not in page["paths"]


# --- refusals ------------------------------------------------------------------------------------

NOT_A_NUMBER = math.nan
BAD_WEIGHTS: list[tuple[object, list[str]]] = [
    ({"four": 1}, ["unknown policy 'four'", "one, two, three"]),
    ({"one": -1}, ["'one' is -1", ">= 0"]),
    ({"one": NOT_A_NUMBER}, ["NaN", "finite"]),
    ({"one": math.inf}, ["is Infinity", "finite"]),
    ({"one": -math.inf}, ["-Infinity", "finite"]),
    ({}, ["no policy is named", "one, two, three"]),
    ({"one": 0, "two": 0}, ["all", "0", "positive"]),
    ({"one": "much"}, ["'much'", "a number"]),
    ({"one": None}, ["null", "a number"]),
    ({"one": True}, ["true", "a number"]),
    ({"one": [1]}, ["[1]", "a number"]),
    ([1, 0, 0], ["[1, 0, 0]", "object"]),
    ("one", ["'one'", "object"]),
    (1, ["1", "object"]),
    (True, ["true", "object"]),
]
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "hi", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    "/v1/responses": {"input": "hi", "max_output_tokens": 2},
}


def post(client: httpx.Client, path: str, **body: Any) -> httpx.Response:
    content = json.dumps({**ROUTES[path], **body})
    return client.post(path, content=content, headers={"Content-Type": "application/json"})


@pytest.mark.parametrize(("weights", "parts"), BAD_WEIGHTS)
@pytest.mark.parametrize("path", ROUTES)
def test_bad_weights_are_refused_on_every_route(
    client: httpx.Client, path: str, weights: object, parts: list[str]
) -> None:
    error = refused(post(client, path, preference_weights=weights))
    assert (error["type"], error["param"]) == ("BadRequestError", "preference_weights")
    assert [part for part in ["preference_weights", *parts] if part not in error["message"]] == []


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("fields", "status", "param", "parts"),
    [
        ({"preference_profile": "nope"}, 400, "preference_profile", ["'nope'", "even, solo"]),
        ({"preference_profile": 7}, 400, "preference_profile", ["7", "not a string", "even, solo"]),
        (
            {"preference_profile": "solo", "preference_weights": {"one": 1}},
            400,
            "preference_weights",
            ["preference_weights and preference_profile", "both"],
        ),
        (
            {"model": "prefmix@solo", "preference_weights": {"one": 1}},
            400,
            "preference_weights",
            ["prefmix@solo", "both"],
        ),
        (
            {"vllm_xargs": {"prefmix_weights": [1, 0, 0]}, "preference_profile": "solo"},
            400,
            "preference_profile",
            ["vllm_xargs.prefmix_weights", "both"],
        ),
        ({"model": "gpt-4"}, 404, "model", ["'gpt-4'", "prefmix"]),
        ({"model": "prefmix@nope"}, 404, "model", ["'nope'", "even, solo"]),
        ({"vllm_xargs": {"prefmix_weights": [1, 0]}}, 400, "vllm_xargs", ["2 weights", "3"]),
        ({"vllm_xargs": {"prefmix_weights": [-1, 1, 1]}}, 400, "vllm_xargs", ["-1"]),
        ({"vllm_xargs": {"prefmix_weights": [1, 1, 1]}}, 400, "vllm_xargs", ["sum to 3"]),
        ({"vllm_xargs": {"prefmix_weights": [math.nan, 0, 1]}}, 400, "vllm_xargs", ["finite"]),
        ({"vllm_xargs": {"prefmix_weights": "even"}}, 400, "vllm_xargs", ["'even'", "list"]),
    ],
)
def test_bad_names_are_refused_on_every_route(
    client: httpx.Client,
    path: str,
    fields: dict[str, Any],
    status: int,
    param: str,
    parts: list[str],
) -> None:
    error = refused(post(client, path, **fields), status)
    assert error["param"] == param
    assert [part for part in parts if part not in error["message"]] == [], error["message"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_beam_search_is_refused_with_the_reason(client: httpx.Client, path: str) -> None:
    error = refused(post(client, path, use_beam_search=True, n=2))
    assert error["param"] == "use_beam_search"
    assert "cannot carry" in error["message"]


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b'{"prompt": "hi",}', "not valid JSON"),
        (b'{"prompt": "\xff"}', "utf-8"),
        (b"[]", "not a JSON object"),
        (b"", "not a JSON object"),
        (b"[" * 100_000, "levels deep"),
        (b'{"max_tokens": ' + b"9" * 5000 + b"}", "digits"),
    ],
)
def test_broken_bodies_are_refused(
    client: httpx.Client, path: str, content: bytes, part: str
) -> None:
    headers = {"Content-Type": "application/json"}
    assert part in refused(client.post(path, content=content, headers=headers))["message"]


def test_other_content_types_are_refused(client: httpx.Client) -> None:
    headers = {"Content-Type": "text/plain"}
    error = refused(client.post("/v1/completions", content="{}", headers=headers))
    assert "application/json" in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "word " * 4000}, None),
        ({"prompt": [5] * (MAX_MODEL_LEN + 1)}, None),
        ({"prompt": None}, "prompt"),
        ({"prompt": {"text": "hi"}}, "prompt"),
        ({"prompt": [10**9]}, None),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10 * MAX_MODEL_LEN}, None),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"n": 0}, None),
        ({"logprobs": 10_000}, "logprobs"),
        ({"structured_outputs": {"regex": "("}}, None),
        ({"stop": 5}, "stop"),
    ],
)
def test_other_bad_fields_are_refused_in_the_same_shape(
    client: httpx.Client, fields: dict[str, Any], param: str | None
) -> None:
    response = complete(client, **fields)
    if response.status_code == 200:
        pytest.fail(f"accepted: {fields!r:.80}")
    # A grammar's error shows the place in it, over several lines.
    error = refused(response, one_line="structured_outputs" not in fields)
    if param is not None:
        assert error["param"] == param


@pytest.mark.parametrize("field", ["top_k", "stream_interval", "seed", "priority"])
def test_numbers_that_the_engine_cannot_take_leave_no_place_taken(
    client: httpx.Client, field: str
) -> None:
    for value in (2**63, 2**64, -(2**63) - 1):
        error = refused(complete(client, **{"prompt": ["a"] * 8, field: value}))
        assert error["param"] == field
    assert text(complete(client))
    assert in_flight(client) == 0


def test_what_a_samplers_buffers_do_not_hold_is_refused(client: httpx.Client) -> None:
    for fields, param in (
        ({"stop_token_ids": list(range(200)), "min_tokens": 1}, "stop_token_ids"),
        ({"bad_words": [f"{'the quick brown fox' * 10} {number}" for number in range(30)]},
         "bad_words"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
    ):  # fmt: skip
        error = refused(complete(client, prompt=["a"] * 2, **fields))
        assert error["param"] == param
        assert "at most" in error["message"]
    assert text(complete(client))
    assert in_flight(client) == 0


@pytest.mark.parametrize("path", ROUTES)
def test_the_largest_integers_harm_nothing(client: httpx.Client, path: str) -> None:
    """Each integer field of a route with numbers at the edges of what is taken."""
    page = client.get("/openapi.json").json()
    content = page["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    name = content["schema"]["$ref"].rsplit("/")[-1]
    properties = page["components"]["schemas"][name]["properties"]
    fields = [
        field
        for field, schema in properties.items()
        if "integer" in (schema.get("type"), *(one.get("type") for one in schema.get("anyOf", ())))
    ]
    assert {"top_k", "seed"} <= set(fields)
    for field in fields:
        for value in (-1, 2**31, 2**63 - 1):
            response = post(client, path, **{field: value})
            assert response.status_code in (200, 400), response.text
    assert text(complete(client))
    assert in_flight(client) == 0


def in_flight(client: httpx.Client) -> float:
    """The gauge of answers in flight, once it has come to rest."""
    for _ in range(50):
        lines = client.get("/metrics").text.splitlines()
        (line,) = (each for each in lines if each.startswith("prefmix_requests_in_flight "))
        if float(line.split()[-1]) == 0:
            break
        asyncio.run(asyncio.sleep(0.05))
    return float(line.split()[-1])


@pytest.mark.parametrize("path", ROUTES)
def test_misspelt_fields_are_refused_and_others_named(client: httpx.Client, path: str) -> None:
    error = refused(post(client, path, preference_weigths={"one": 1}))
    assert error["param"] == "preference_weigths"
    assert "did you mean preference_weights?" in error["message"]
    error = refused(post(client, path, vllm_xargs={"prefmix_weight": [1, 0, 0]}))
    assert "vllm_xargs.prefmix_weights?" in error["message"]
    answer = post(client, path, favourite_colour="blue")
    assert answer.status_code == 200
    assert answer.headers["x-prefmix-ignored-fields"] == "favourite_colour"


@pytest.mark.parametrize("key", [None, "wrong-key", API_KEY[:-1]])
def test_without_the_key_nothing_that_runs_a_policy_answers(
    server: ServerProcess, key: str | None
) -> None:
    with server.client(key=key) as client:
        for path in (*ROUTES, "/tokenize", "/detokenize", "/invocations"):
            assert refused(client.post(path, json={}), 401)["type"] == "AuthenticationError"
        for path in ("/v1/models", "/v1/mixture", "/v1/responses/x", "/nowhere"):
            assert refused(client.get(path), 401)["type"] == "AuthenticationError"
        pages = ("/", "/docs", "/console")
        for path in ("/health", "/ping", "/version", "/metrics", "/openapi.json", *pages):
            assert client.get(path).status_code == 200, path


@pytest.mark.parametrize(
    "path",
    [
        "/invocations",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/chat/completions/batch",
        "/generative_scoring",
        "/v1/systemone",
        "/v1/completions/render",
        "/v1/chat/completions/render",
        "/inference/v1/generate",
        "/v1/embeddings",
        "/v1/audio/transcriptions",
        "/v1/load_lora_adapter",
        "/adapters",
        "/pooling",
        "/score",
        "/rerank",
        "/tokenizer_info",
        "/collective_rpc",
        "/scale_elastic_ep",
        "/pause",
        "/reset_prefix_cache",
        "/start_profile",
        "/server_info",
        "/v1",
        "/v1/completions/",
    ],
)
def test_routes_that_are_not_allowed_do_not_exist(client: httpx.Client, path: str) -> None:
    for method in ("GET", "POST"):
        response = client.request(method, path, json={"prompt": "hi"}, follow_redirects=False)
        if response.is_redirect:  # Starlette sends /v1/completions/ to /v1/completions
            assert response.headers["location"].removesuffix("/").endswith("/v1/completions")
            continue
        assert refused(response, 404)["message"] == f"{method} {path} is not served here"


def test_wrong_methods_are_405_in_the_same_shape(client: httpx.Client) -> None:
    assert "GET /v1/completions" in refused(client.get("/v1/completions"), 405)["message"]
    assert "POST /v1/mixture" in refused(client.post("/v1/mixture"), 405)["message"]


def test_a_client_that_hangs_up_frees_its_place(server: ServerProcess) -> None:
    with server.client() as client:
        for _ in range(8):
            body = {"prompt": "hi", "max_tokens": 200, "stream": True, "ignore_eos": True}
            with client.stream("POST", "/v1/completions", json=body) as response:
                next(response.iter_bytes())
        with pytest.raises(httpx.ReadTimeout):
            client.post(
                "/v1/completions",
                json={"prompt": "hi", "max_tokens": 200, "ignore_eos": True},
                timeout=httpx.Timeout(120, read=0.05),
            )
    with server.client() as client:

        def running() -> list[float]:
            lines = client.get("/metrics").text.splitlines()
            named = (line for line in lines if line.startswith("vllm:num_requests_running"))
            return [float(line.split()[-1]) for line in named]

        wait(lambda: set(running()) == {0})


def test_after_all_of_that_the_server_answers(client: httpx.Client, server: ServerProcess) -> None:
    assert server.process.poll() is None
    assert client.get("/health").status_code == 200
    before = text(complete(client, max_tokens=16, preference_profile="solo"))
    assert before == text(complete(client, max_tokens=16, model="prefmix@solo"))
