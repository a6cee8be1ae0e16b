"""Faults of a running server: what clients, the log, the metrics and a supervisor see.

docs/operations.md describes each of them. The last test ends the server;
tests/processes/test_deaths.py kills others.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from prefmix.mixing import wire
from support.checkpoints.tiny_faults import with_nan_token
from support.dying_server import MANY_TOKENS, dies, named
from support.preloaded_server import Preloaded
from support.server_process import ServerProcess, engine_flags


@pytest.fixture(scope="module")
def folder(policies: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two policies, the second of which gives NaN for texts with a capital Q."""
    folder = tmp_path_factory.mktemp("faults")
    shutil.copytree(policies[0], folder / "good")
    from transformers import AutoTokenizer

    (token,) = AutoTokenizer.from_pretrained(policies[1]).encode("Q", add_special_tokens=False)
    with_nan_token(folder / "bad", policies[1], token=token)
    return folder


def words(folder: Path, *flags: str) -> list[str]:
    return [
        *(f"--policy={name}={folder / name}" for name in ("good", "bad")),
        "--weights-store",
        str(folder / "weights.json"),
        *engine_flags(),
        *flags,
    ]


@pytest.fixture(scope="module")
def server(folder: Path, preloaded: Preloaded) -> Iterator[ServerProcess]:
    """A server with a KV cache of 640 tokens, fewer than some tests need at once."""
    cache = ("--block-size=32", "--num-gpu-blocks-override=20")
    running = ServerProcess(
        folder, ["--max-waiting=16", *words(folder, *cache)], preloaded=preloaded
    )
    try:
        yield running.wait_ready()
    finally:
        running.kill()


def metric(server: ServerProcess, series: str) -> float:
    """One series of /metrics."""
    with server.client() as client:
        found = re.search(rf"^{re.escape(series)} (.+)$", client.get("/metrics").text, re.M)
    assert found is not None, series
    return float(found[1])


def ask(server: ServerProcess, text: str, *, route: str = "completions", **body: Any) -> Any:
    """The response to one request."""
    body = {"max_tokens": 8, "temperature": 0, **body}
    if route == "completions":
        body["prompt"] = text
    elif route == "responses":
        body |= {"input": text, "max_output_tokens": body.pop("max_tokens")}
    else:
        body["messages"] = [{"role": "user", "content": text}]
    with server.client() as client:
        return client.post(f"/v1/{route}", json=body)


@pytest.mark.parametrize("route", ["completions", "chat/completions", "responses"])
def test_a_nan_is_an_error_500_that_names_the_policy(server: ServerProcess, route: str) -> None:
    response = ask(server, "a Q", route=route)
    error = response.json()["error"]
    assert response.status_code == 500
    assert (error["type"], error["code"]) == ("InternalServerError", 500)
    assert error["message"].startswith("policy 'bad' computed NaN or infinity")
    weights = {"preference_weights": {"good": 1}}
    assert ask(server, "a Q", route=route, **weights).status_code == 200
    assert ask(server, "no such letter", route=route).status_code == 200


@pytest.mark.parametrize("route", ["completions", "chat/completions"])
def test_a_stream_that_fails_says_so_and_ends(server: ServerProcess, route: str) -> None:
    response = ask(server, "a Q", route=route, stream=True)
    *events, done = [
        line.removeprefix("data: ") for line in response.text.splitlines() if line.strip()
    ]
    assert done == "[DONE]"
    assert "policy 'bad' computed NaN" in json.loads(events[-1])["error"]["message"]


def test_a_stream_of_the_responses_api_ends_with_an_error_event(server: ServerProcess) -> None:
    response = ask(server, "a Q", route="responses", stream=True)
    name, data = response.text.strip().splitlines()[-2:]
    assert name == "event: error"
    assert "policy 'bad' computed NaN" in json.loads(data.removeprefix("data: "))["message"]
    assert "Traceback" not in server.stderr


def test_of_a_list_or_of_samples_none_is_half_answered(server: ServerProcess) -> None:
    with server.client() as client:
        body = {"prompt": ["fine", "a Q", "fine too"], "max_tokens": 4}
        assert client.post("/v1/completions", json=body).status_code == 500
        body = {"prompt": "a Q", "n": 2, "temperature": 1, "max_tokens": 4}
        assert client.post("/v1/completions", json=body).status_code == 500


def test_failures_are_counted_by_policy_and_said_once(server: ServerProcess) -> None:
    series = 'prefmix_policy_failures_total{policy="bad"}'
    errors = 'prefmix_requests_total{outcome="error",profile="default"}'
    before, errors_before = metric(server, series), metric(server, errors)
    for stream in (False, True):
        for _ in range(3):
            ask(server, "a Q", stream=stream)
    assert metric(server, series) - before == 6
    assert metric(server, errors) - errors_before == 6
    assert metric(server, 'prefmix_policy_failures_total{policy="good"}') == 0
    assert server.stderr.count("policy 'bad' computed NaN") == 1
    assert "Traceback" not in server.stderr


@pytest.mark.parametrize("route", ["completions", "chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_no_client_can_forge_a_failure(server: ServerProcess, route: str, stream: bool) -> None:
    """A stop string in the engine's own words ends a text like any other, and counts nothing."""
    series = 'prefmix_policy_failures_total{policy="good"}'
    before, said = metric(server, series), server.stderr.count("computed NaN")
    for name in ("good", "made-up"):
        stop = wire.to_stop_reason([name])
        grammar = {"choice": [stop]}
        response = ask(
            server,
            "fine",
            route=route,
            stream=stream,
            stop=[stop],
            structured_outputs=grammar,
            max_tokens=64,
        )
        assert response.status_code == 200, response.text
        assert "computed NaN" not in response.text
        assert f'"stop_reason":"{stop}"' in response.text
    assert metric(server, series) == before
    assert server.stderr.count("computed NaN") == said
    with server.client() as client:
        assert "made-up" not in client.get("/metrics").text


def test_requests_beside_a_failing_one_go_on(server: ServerProcess) -> None:
    """Every second of sixteen requests is spoiled; the others get the texts of a quiet server."""
    texts = [f"text number {index}" for index in range(8)]

    def answer(text: str) -> str:
        response = ask(server, text, max_tokens=24)
        assert response.status_code == 200, response.text
        return str(response.json()["choices"][0]["text"])

    alone = [answer(text) for text in texts]
    with ThreadPoolExecutor(16) as pool:
        spoiled = [pool.submit(ask, server, f"Q {text}", max_tokens=24) for text in texts]
        beside = list(pool.map(answer, texts))
    assert beside == alone
    assert {each.result().status_code for each in spoiled} == {500}


def test_more_than_the_kv_cache_holds_is_preempted_not_lost(server: ServerProcess) -> None:
    """Twelve texts of 240 tokens in a cache of 640: each is answered in full."""
    with ThreadPoolExecutor(12) as pool:
        asked = [
            pool.submit(ask, server, f"{index} words", max_tokens=MANY_TOKENS, ignore_eos=True)
            for index in range(12)
        ]
    responses = [each.result() for each in asked]
    assert {response.status_code for response in responses} == {200}
    assert {r.json()["usage"]["completion_tokens"] for r in responses} == {MANY_TOKENS}
    assert metric(server, 'vllm:num_preemptions_total{engine="0",model_name="prefmix"}') > 0


def test_what_can_never_fit_is_refused_at_once(server: ServerProcess) -> None:
    response = ask(server, "word " * 400)
    assert response.status_code == 400
    assert "256" in response.json()["error"]["message"]


def test_policies_that_vanish_from_the_disk_are_not_missed(
    server: ServerProcess, folder: Path
) -> None:
    before = ask(server, "hello").json()["choices"]
    moved = folder.with_name("moved")
    moved.mkdir()
    for name in ("good", "bad"):
        shutil.move(folder / name, moved / name)
    try:
        assert ask(server, "hello").json()["choices"] == before
        assert ask(server, "hello", route="chat/completions").status_code == 200
    finally:
        for name in ("good", "bad"):
            shutil.move(moved / name, folder / name)


def test_a_killed_worker_ends_the_server(server: ServerProcess) -> None:
    """On a CPU the engine's one worker is a process of its own, as each of several is on GPUs."""
    (worker,) = named(server, "Worker")
    dies(server, worker.kill)
