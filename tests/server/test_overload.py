"""A real server with more requests than it admits; the last test ends the server."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.preloaded_server import Preloaded
from support.server_process import ServerProcess, engine_flags

MAX_RUNNING, MAX_WAITING = 4, 2
MAX_BODY = 200_000
DRAIN_S = 300
"""A drain that no machine is too slow for."""
LONG = {"prompt": "the quick brown", "max_tokens": 400, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(
    policies: list[Path], tmp_path_factory: pytest.TempPathFactory, preloaded: Preloaded
) -> Iterator[Any]:
    words = [f"--policy={folder.name}={folder}" for folder in policies]
    words += [f"--max-waiting={MAX_WAITING}", f"--max-body-bytes={MAX_BODY}"]
    words.append(f"--drain-timeout={DRAIN_S}")
    flags = engine_flags(**{"max-num-seqs": MAX_RUNNING, "max-model-len": 512})
    flags.append("--enable-server-load-tracking")
    process = ServerProcess(
        tmp_path_factory.mktemp("server"), [*words, *flags], preloaded=preloaded
    )
    try:
        yield process.wait_ready()
    finally:
        process.kill()


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with server.client(key=None) as opened:
        yield opened


def metric(client: httpx.Client, name: str, **labels: str) -> float:
    """The sum of the samples that have these labels."""
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    return sum(
        float(line.rpartition(" ")[2])
        for line in client.get("/metrics").text.splitlines()
        if line.split("{")[0].split(" ")[0] == name and all(each in line for each in wanted)
    )


def seconds_until(is_so: Callable[[], bool], limit_s: float = 300) -> float:
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < limit_s
        time.sleep(0.02)
    return time.monotonic() - began


@pytest.fixture(scope="module")
def is_soon(client: httpx.Client) -> Callable[[float], bool]:
    """True below a second, or below half of what a whole text takes while the machine is busy."""
    limits_s = [1.0]

    def is_soon(seconds: float) -> bool:
        if seconds >= max(limits_s):
            began = time.monotonic()
            assert client.post("/v1/completions", json=LONG).status_code == 200
            limits_s.append((time.monotonic() - began) / 2)
        return seconds < max(limits_s)

    return is_soon


def is_idle(client: httpx.Client) -> bool:
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
    return not any(metric(client, name) for name in names)


@contextlib.contextmanager
def streams(server: ServerProcess, count: int) -> Iterator[None]:
    """Holds so many long streams open, each an admitted request."""
    with server.client(key=None) as several, contextlib.ExitStack() as stack:
        for _ in range(count):
            stream = several.stream("POST", "/v1/completions", json={**LONG, "stream": True})
            assert stack.enter_context(stream).status_code == 200
        yield


def error_of(response: httpx.Response) -> str:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == response.status_code
    return str(error["message"])


def test_more_than_run_and_wait_are_refused(server: ServerProcess, client: httpx.Client) -> None:
    refused = metric(client, "prefmix_requests_total", outcome="refused")
    with streams(server, MAX_RUNNING + MAX_WAITING):
        # The last of them may still be on its way to the engine.
        for path, body in (
            ("/v1/completions", LONG),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ):
            answer = client.post(path, json=body)
            assert answer.status_code == 503, answer.text
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert f"at most {MAX_WAITING} may" in error_of(answer)
        assert client.get("/ready").status_code == 200, "it is full, not unready"
        assert client.post("/tokenize", json={"prompt": "x"}).status_code == 200
    seconds_until(lambda: is_idle(client))
    assert client.post("/v1/completions", json={**LONG, "max_tokens": 2}).status_code == 200
    assert metric(client, "prefmix_requests_total", outcome="refused") == refused + 2
    assert metric(client, "prefmix_max_waiting") == MAX_WAITING


def test_answers_and_prompts_are_counted_one_by_one(
    server: ServerProcess, client: httpx.Client
) -> None:
    most = MAX_RUNNING + MAX_WAITING
    short = {"max_tokens": 2, "temperature": 1}
    for prompt, n in ((["x"] * most, 1), ("x", most), ([[5, 6], [7]], 3), ([5] * 50, 2)):
        answer = client.post("/v1/completions", json={**short, "prompt": prompt, "n": n})
        assert answer.status_code == 200, answer.text
    too_many = client.post("/v1/completions", json={**short, "prompt": ["x"] * 4, "n": 2})
    assert too_many.status_code == 400
    said = error_of(too_many)
    assert "asks for 8 answers (prompts x n x preference_candidates); this server" in said
    assert f"takes at most {most} at once" in said
    with streams(server, MAX_RUNNING):
        body = {**short, "prompt": ["x"] * 3}
        assert client.post("/v1/completions", json=body).status_code == 503
        body["prompt"] = ["x"] * 2
        assert client.post("/v1/completions", json=body).status_code == 200
    seconds_until(lambda: is_idle(client))


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place_soon(
    server: ServerProcess, client: httpx.Client, is_soon: Callable[[float], bool], stream: bool
) -> None:
    cancelled = metric(client, "prefmix_requests_total", outcome="cancelled")
    with server.client(key=None) as leaving:
        request = leaving.build_request("POST", "/v1/completions", json={**LONG, "stream": stream})
        if stream:
            answer = leaving.send(request, stream=True)
            next(answer.iter_bytes())
            answer.close()
        else:
            request.extensions["timeout"] = {"read": 0.3}
            with pytest.raises(httpx.ReadTimeout):
                leaving.send(request)
    assert is_soon(seconds_until(lambda: is_idle(client)))
    seconds_until(lambda: client.get("/load").json() == {"server_load": 0})
    assert metric(client, "prefmix_requests_total", outcome="cancelled") == cancelled + 1


def test_a_request_ends_at_its_deadline(
    client: httpx.Client, is_soon: Callable[[float], bool]
) -> None:
    """A stream's deadline is the shortest at which a token has come before it."""
    counted = metric(client, "prefmix_requests_total", outcome="timeout")
    late = client.post("/v1/completions", json=LONG, headers={"x-prefmix-timeout": "0.2"})
    assert late.status_code == 504
    assert "within its 0.2 s" in error_of(late)
    assert is_soon(seconds_until(lambda: is_idle(client)))
    counted += 1
    for deadline_s in (0.2, 0.4, 0.8, 1.6, 3.2):
        headers = {"x-prefmix-timeout": str(deadline_s)}
        cut = client.post("/v1/completions", json={**LONG, "stream": True}, headers=headers)
        counted += 1
        assert is_soon(seconds_until(lambda: is_idle(client)))
        if cut.status_code == 504:  # before the stream began
            assert f"within its {deadline_s} s" in error_of(cut)
            continue
        assert cut.status_code == 200
        *before, last, done = cut.text.removesuffix("\n\n").split("\n\n")
        assert done == "data: [DONE]"
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == 504
        if before and json.loads(before[-1].removeprefix("data: "))["choices"]:
            break
    else:
        pytest.fail("no token came before any deadline")
    seconds_until(lambda: client.get("/load").json() == {"server_load": 0})
    assert metric(client, "prefmix_requests_total", outcome="timeout") == counted


LARGE: dict[str, tuple[int, dict[str, Any]]] = {
    "body": (413, {"prompt": "x" * MAX_BODY}),
    "prompt": (400, {"prompt": "the " * 40_000}),
    "prompts": (400, {"prompt": ["x"] * 40_000}),
    "token ids": (400, {"prompt": [5] * 40_000}),
    "n": (400, {"prompt": "x", "n": 2_000_000_000}),
    "logprobs": (400, {"prompt": "x", "logprobs": 2_000_000_000}),
    "stop": (400, {"prompt": "x", "stop": ["y"] * 30_000}),
    "bad words": (400, {"prompt": "x", "bad_words": [f"y{number}" for number in range(20_000)]}),
}


@pytest.mark.parametrize("what", LARGE)
def test_what_is_too_large_is_refused_before_it_costs_much(
    client: httpx.Client, is_soon: Callable[[float], bool], what: str
) -> None:
    status, body = LARGE[what]
    began = time.monotonic()
    answer = client.post("/v1/completions", json={"max_tokens": 2, **body})
    assert answer.status_code == status, answer.text[:300]
    error_of(answer)
    assert is_soon((time.monotonic() - began) / 2)


def test_json_that_is_nested_too_deep_is_refused(client: httpx.Client) -> None:
    headers = {"content-type": "application/json"}
    for content in ("[" * 90_000, '{"prompt": ' + "[" * 90_000 + "]" * 90_000 + "}"):
        answer = client.post("/v1/completions", content=content, headers=headers)
        assert answer.status_code == 400, answer.text[:300]
        error_of(answer)
    assert client.get("/ready").json() == {"ready": True, "missing": []}


def test_a_client_that_reads_nothing_holds_nobody_up(
    server: ServerProcess, client: httpx.Client
) -> None:
    body = {**LONG, "logprobs": 5, "max_tokens": 300, "stream": True}
    with server.client(key=None) as slow, slow.stream("POST", "/v1/completions", json=body):
        for _ in range(3):
            answer = client.post("/v1/completions", json={**LONG, "max_tokens": 5})
            assert answer.status_code == 200
        seconds_until(lambda: is_idle(client))


def test_asked_to_end_it_finishes_what_it_has_begun(
    server: ServerProcess, client: httpx.Client
) -> None:
    answers: list[httpx.Response] = []

    def send(stream: bool) -> None:
        with server.client(key=None) as own:
            answers.append(own.post("/v1/completions", json={**LONG, "stream": stream}))

    threads = [threading.Thread(target=send, args=(stream,)) for stream in (False, True)]
    for thread in threads:
        thread.start()
    seconds_until(lambda: metric(client, "vllm:num_requests_running") == 2)
    server.family()
    server.process.send_signal(signal.SIGTERM)
    seconds_until(lambda: client.get("/ready").status_code == 503)
    assert client.get("/ready").json() == {"ready": False, "missing": ["the server is ending"]}
    assert client.get("/health").status_code == 200
    late = client.post("/v1/completions", json=LONG)
    assert (late.status_code, late.headers["connection"]) == (503, "close")
    assert int(late.headers["retry-after"]) > 0
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200, 200]
    whole = next(answer for answer in answers if answer.text.startswith("{"))
    assert whole.json()["usage"]["completion_tokens"] == LONG["max_tokens"]
    assert any(answer.text.endswith("data: [DONE]\n\n") for answer in answers)
    assert server.process.wait(timeout=DRAIN_S + 60) == 0
    assert server.survivors() == []
    assert "Traceback" not in server.stderr
