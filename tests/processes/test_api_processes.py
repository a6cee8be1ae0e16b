"""Two API processes of one server: one account, one version of the weights, one end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from prefmix.mixing.ways_to_mix import MIXINGS
from prefmix.server.auth.access_levels import LEVELS, Level
from prefmix.server.telemetry.engine_statistics import INTERVAL_S
from prefmix.weights.engines.remote import RemoteEngine
from support.admin_server import KEY, PLAIN, TOKEN, Live, change_under_load, wait
from support.dying_server import END_S, dies, named
from support.engines import AdaptedBase
from support.exactness import TOLERANCE_NATS, Job, Oracle
from support.fit.engine_law import check_mixed_parameters
from support.preloaded_server import Preloaded
from support.server_process import PREFMIX, ServerProcess, engine_flags, free_port, policy_flags

DRAIN_S = 300
"""A drain that no machine is too slow for."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, preloaded_pair: Preloaded) -> Iterator[Live]:
    """Two API processes that measure every step, and the admin routes on a port of their own."""
    port = str(free_port())
    words = ["--admin-port", port, "--statistics-every", "1", "--", "--api-server-count=2"]
    live = Live(tmp_path_factory.mktemp("pair"), *words, preloaded=preloaded_pair)
    live.admin_url = f"http://127.0.0.1:{port}"
    try:
        live.server.wait_ready()
        yield live
    finally:
        live.server.kill()


def test_two_processes_agree(pair: Live) -> None:
    """Every new connection, whichever process it reaches, sees a change as soon as it is made."""
    assert httpx.get(f"{pair.server.url}/admin/weights").status_code == 404
    first = pair.version()
    put_s = []
    for number in range(20):
        started = time.perf_counter()
        changed = pair.change(
            "PUT", "/profiles/x", {"weights": {"polite": number + 1, "concise": 1}}
        )
        put_s.append(time.perf_counter() - started)
        assert changed.json()["version"] == first + number + 1, changed.text
        assert {pair.version() for _ in range(6)} == {first + number + 1}
    print(f"PUT with two API processes: median {statistics.median(put_s) * 1e3:.1f} ms")


def test_changes_of_two_processes_under_load(pair: Live) -> None:
    change_under_load(pair, num_changes=20)


def test_metrics_of_two_processes_are_one_account(pair: Live) -> None:
    """Both processes report the same account: nothing is missing, nothing counted twice."""

    def scrape() -> dict[str, float]:
        text = httpx.get(f"{pair.server.url}/metrics", verify=PLAIN).text
        lines = [line for line in text.splitlines() if line.startswith("prefmix_")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def grown(name: str) -> float:
        return scrape()[name] - before[name]

    tokens = "prefmix_statistics_tokens_total"
    time.sleep(2 * INTERVAL_S)  # until the measurements of earlier tests are fetched
    before = scrape()
    for _ in range(12):
        pair.complete(max_tokens=4, ignore_eos=True)
    wait(lambda: grown(tokens) >= 48)
    time.sleep(INTERVAL_S + 1)
    assert grown(tokens) == grown('prefmix_policy_tokens_total{policy="polite"}') == 48
    assert grown('prefmix_requests_total{outcome="ok",profile="balanced"}') == 12
    version = pair.version()
    # A process may learn just after its client that an answer has gone out.
    wait(lambda: scrape()["prefmix_requests_in_flight"] == 0)
    for _ in range(8):
        seen = scrape()
        assert seen["prefmix_weights_version"] == version
        assert seen["prefmix_requests_in_flight"] == 0
        assert seen['prefmix_default_profile{profile="balanced"}'] == 1


def test_the_admin_port_has_the_admin_routes_and_the_main_port_has_none(pair: Live) -> None:
    token = {"Authorization": f"Bearer {TOKEN}"}
    for listed, level in LEVELS.items():
        path = re.sub(r"\{[^}]*\}", "x", listed)
        without = httpx.put(pair.admin_url + path, verify=PLAIN).status_code
        if level is Level.ADMIN:
            assert without == 401
            main = httpx.get(pair.server.url + path, headers=token, verify=PLAIN)
            assert main.status_code == 404
        else:
            assert without == (405 if path == "/openapi.json" else 404)


def test_two_processes_follow_the_file_together(pair: Live) -> None:
    version = pair.version()
    words = ["weights", "set", "outside", "concise=1", "--weights-store", str(pair.store)]
    subprocess.run([str(PREFMIX), *words], check=True, capture_output=True, timeout=60)
    os.kill(pair.server.process.pid, signal.SIGHUP)
    wait(lambda: {pair.version() for _ in range(8)} == {version + 1})


def test_a_frozen_process_stops_every_change(pair: Live) -> None:
    """A change needs every API process, so one process that cannot answer stops it for all."""
    apis = [process for process in pair.server.family() if "APIServer" in process.name()]
    assert len(apis) == 2, [process.name() for process in pair.server.family()]
    # Once a change has gone through, none of an earlier test holds a lock.
    assert pair.change("PUT", "/profiles/y", {"weights": {"concise": 1}}).status_code == 200
    before = pair.store.read_bytes()
    apis[0].suspend()
    try:
        for _ in range(20):  # until a connection reaches the process that is awake
            try:
                refused = httpx.put(
                    f"{pair.admin_url}/admin/profiles/y",
                    json={"weights": {"polite": 1}},
                    headers={"Authorization": f"Bearer {TOKEN}"},
                    timeout=10,
                )
                break
            except httpx.TimeoutException:
                continue
        else:
            pytest.fail("each of 20 connections has reached the frozen process")
    finally:
        apis[0].resume()
    assert refused.status_code == 503
    assert "no answer within 5 s" in refused.json()["error"]["message"]
    assert pair.change("PUT", "/profiles/y", {"weights": {"polite": 1}}).status_code == 200
    assert pair.store.read_bytes() != before


def test_a_killed_api_process_ends_the_server(pair: Live) -> None:
    """The last test of this server."""
    first, _ = named(pair.server, "APIServer")
    dies(pair.server, first.kill, key=KEY)


def test_an_engine_that_ends_by_itself_ends_the_server(
    policies: list[Path], tmp_path: Path, preloaded_pair: Preloaded
) -> None:
    """vLLM waits on after an end with exit code 0, and nobody would answer."""
    words = [*policy_flags(*policies[:2]), *engine_flags(), "--api-server-count=2"]
    server = ServerProcess(tmp_path, words, preloaded=preloaded_pair)
    try:
        server.wait_ready()
        (engine,) = named(server, "EngineCore")
        engine.terminate()
        assert server.process.wait(timeout=END_S) == 1
        last = server.stderr.strip().splitlines()[-1]
        assert re.fullmatch(
            r"prefmix: error: the server failed: EngineCore \(process \d+\) has ended; .*", last
        ), server.stderr
        assert server.survivors() == []
    finally:
        server.kill()


def requests_counted(metrics: str) -> set[float]:
    """The values of what counts requests, tokens and lookups in the prefix cache."""
    counted = re.compile(
        r"(prefmix_requests_total|prefmix_statistics_tokens_total|vllm:(prompt|generation)_tokens_total"
        r"|vllm:prefix_cache_(queries|hits)_total|vllm:request_success_total)\{.*\} (\S+)"
    )
    return {float(found[4]) for line in metrics.splitlines() if (found := counted.match(line))}


def streamed_choices(
    client: httpx.Client, body: dict[str, object], mixing: str
) -> list[dict[str, Any]]:
    """The choices of an answer's chunks."""
    asked = {**body, "preference_mixing": mixing, "stream": True}
    with client.stream("POST", "/v1/completions", json=asked) as stream:
        assert stream.headers["x-prefmix-mixing"] == mixing
        lines = [line.removeprefix("data: ") for line in stream.iter_lines()]
    chunks = [json.loads(line) for line in lines if line.startswith("{")]
    assert chunks[0]["prefmix"]["mixing"] == mixing
    return [choice for chunk in chunks for choice in chunk["choices"]]


def check_both_ways_to_mix(client: httpx.Client, oracle: Oracle) -> None:
    """The answers say in which way they were mixed, and have its log-probabilities."""
    assert client.get("/v1/mixture").json()["ways_to_mix"] == ["logits", "parameters"]
    prompt = (5, 6, 7)
    body = {"prompt": prompt, "max_tokens": 6, "logprobs": 0, "return_token_ids": True}
    wishes = {"preference_weights": {"plain": 1, "rs": 3}, "preference_mixing": "parameters"}
    for mixing in MIXINGS:
        answer = client.post(
            "/v1/completions", json={**body, **wishes, "preference_mixing": mixing}
        )
        found = answer.json()
        assert answer.headers["x-prefmix-mixing"] == found["prefmix"]["mixing"] == mixing
        job = Job(prompt=prompt, weights=(0.25, 0.75, 0.0), mixing=mixing)
        for choices in (found["choices"], streamed_choices(client, {**body, **wishes}, mixing)):
            tokens = [token for choice in choices for token in choice["token_ids"]]
            logprobs = [each for choice in choices for each in choice["logprobs"]["token_logprobs"]]
            assert len(tokens) == 6
            assert abs(oracle.errors(job, tokens, logprobs)).max() < TOLERANCE_NATS
    refused = client.post(
        "/v1/completions", json={**body, **wishes, "preference_attribution": True}
    )
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "preference_attribution"


def test_two_api_processes_serve_one_trunk_and_end_together(
    adapted: AdaptedBase, tmp_path: Path, preloaded_pair: Preloaded
) -> None:
    adapters = [f"--adapter={folder.name}={folder}" for folder in adapted.adapters[:2]]
    words = ["--base", str(adapted.base), *adapters, f"--reference=start={adapted.base}"]
    words.append(f"--drain-timeout={DRAIN_S}")
    flags = [*engine_flags(), "--api-server-count", "2"]
    server = ServerProcess(tmp_path, [*words, "--name", "pair", *flags], preloaded=preloaded_pair)
    try:
        server.wait_ready()
        with server.client(key=None) as client:
            assert client.get("/v1/mixture").json()["base"] == str(adapted.base)
            assert requests_counted(client.get("/metrics").text) == {0.0}
        assert "parameters, shared by all)" in server.stdout
        assert "each policy and their mixture drew 12 tokens in " in server.stdout
        seen = set()
        for _ in range(24):
            # A new connection each time, so that both processes are asked.
            with server.client(key=None) as client:
                body = {"model": "pair@default", "prompt": "hi", "max_tokens": 2}
                response = client.post("/v1/completions", json=body)
                assert response.status_code == 200, response.text
                seen.add(response.headers["x-prefmix-weights"])
                assert client.post("/invocations", json=body).status_code == 404
        assert seen == {"plain=0.5,rs=0.5,start=0"}
        with server.client(key=None) as client:
            check_both_ways_to_mix(client, Oracle([*adapted.merged[:2], adapted.base]))
        with contextlib.closing(RemoteEngine(server.url)) as remote:
            assert remote.spec.base == str(adapted.base)
            check_mixed_parameters(remote, [*adapted.merged[:2], adapted.base])
        with server.client(key=None) as client, contextlib.ExitStack() as stack:
            body = {"prompt": "hi", "max_tokens": 120, "stream": True, "ignore_eos": True}
            streams = []
            for _ in range(8):
                stream = client.stream("POST", "/v1/completions", json=body)
                streams.append(stack.enter_context(stream).iter_text())
            begun = [next(stream) for stream in streams]
            assert client.get("/ready").json() == {"ready": True, "missing": []}
            assert server.interrupt(timeout=DRAIN_S + 60) == 0
            for first, stream in zip(begun, streams, strict=True):
                text = first + "".join(stream)
                assert text.endswith("data: [DONE]\n\n")
                assert '"finish_reason":"length"' in text, "finished, not cut off"
        assert server.survivors() == []
        assert "Traceback" not in server.stderr
    finally:
        server.kill()
