"""Two nodes of one data-parallel group, here both on loopback: one mixture, one set of weights.

The commands are those of docs/deploying.md; a second machine would differ in the address. They run
as they are: forks would hold open what tells the launcher that another process has ended.
"""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from prefmix.server.remote_engines import LOST_S
from support.admin_server import CONFIG, Live, wait
from support.exactness import TOLERANCE_NATS, Job, Oracle
from support.server_process import ServerProcess, free_port

MEMBERS = ("positive", "concise", "polite", "reference")


@dataclass
class Nodes:
    first: Live
    """The node with the server and engine 0."""
    second: ServerProcess
    """The node with engine 1 alone."""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "second").mkdir()
    group = ["--data-parallel-size", "2", "--data-parallel-size-local", "1"]
    group += ["--data-parallel-address", "127.0.0.1"]
    group += ["--data-parallel-rpc-port", str(free_port()), "--dtype", "float32"]
    group += ["--kv-cache-memory-bytes", str(64 * 2**20)]
    both = Nodes(
        Live(folder / "first", "--", *group),
        ServerProcess(
            folder / "second",
            [str(CONFIG), "--", *group, "--headless", "--data-parallel-start-rank", "1"],
        ),
    )
    try:
        both.first.server.wait_ready()
        both.second.wait_said("the engines of this machine run")
        yield both
    finally:
        both.first.server.kill()
        both.second.kill()


def ask_at_once(live: Live, bodies: list[dict[str, Any]]) -> list[httpx.Response]:
    """Answers to requests that run at the same time, in the order of the requests."""
    answers: dict[int, httpx.Response] = {}

    def ask(index: int) -> None:
        answers[index] = live.complete(**bodies[index])

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answers[index] for index in range(len(bodies))]


def tokens_by_engine(live: Live) -> dict[str, float]:
    text = httpx.get(f"{live.server.url}/metrics").text
    found = re.findall(r'^vllm:generation_tokens_total\{engine="(\d)".*\} (\S+)$', text, re.M)
    return {engine: float(tokens) for engine, tokens in found}


def test_both_engines_answer_exactly(nodes: Nodes) -> None:
    said = nodes.second.stderr
    assert "prefmix: the engines of this machine run" in said
    assert "prefmix-stage" not in said
    oracle = Oracle(CONFIG.parent / "checkpoints" / name for name in MEMBERS)
    weights = [(0.2, 0.3, 0.5, 0.0), (1.0, 0.0, 0.0, 0.0), (0.25, 0.25, 0.25, 0.25)]
    jobs = [
        Job(prompt=(5 + n, 6, 7, 8), weights=weights[n % 3], max_tokens=20, seed=n)
        for n in range(12)
    ]
    bodies: list[dict[str, Any]] = [
        {
            "prompt": list(job.prompt),
            "max_tokens": job.max_tokens,
            "seed": job.seed,
            "temperature": 1.0,
            "ignore_eos": True,
            "logprobs": 0,
            "return_token_ids": True,
            "preference_weights": dict(zip(MEMBERS, job.weights, strict=True)),
        }
        for job in jobs
    ]
    before = tokens_by_engine(nodes.first)
    for job, answer in zip(jobs, ask_at_once(nodes.first, bodies), strict=True):
        assert answer.status_code == 200, answer.text
        (choice,) = answer.json()["choices"]
        errors = oracle.errors(job, choice["token_ids"], choice["logprobs"]["token_logprobs"])
        assert abs(errors).max() < TOLERANCE_NATS

    def both_have_drawn() -> bool:
        after = tokens_by_engine(nodes.first)
        return set(after) == {"0", "1"} and all(after[engine] > before[engine] for engine in after)

    wait(both_have_drawn)


def test_one_weight_change_is_seen_by_all(nodes: Nodes) -> None:
    """The next request has the new weights, whichever engine draws its tokens."""
    for number in range(1, 4):
        weights = {"concise": number, "polite": 1}
        changed = nodes.first.change("PUT", "/profiles/balanced", {"weights": weights}).json()
        before = tokens_by_engine(nodes.first)
        answers = ask_at_once(nodes.first, [{"max_tokens": 20, "ignore_eos": True}] * 8)
        versions = {answer.headers["x-prefmix-weights-version"] for answer in answers}
        assert versions == {str(changed["version"])}
        shares = [answer.json()["prefmix"]["weights"]["concise"] for answer in answers]
        assert shares == pytest.approx([number / (number + 1)] * 8)
        wait(
            lambda before=before: all(
                tokens > before[engine] for engine, tokens in tokens_by_engine(nodes.first).items()
            )
        )
    stored = json.loads(nodes.first.store.read_text())
    assert stored["version"] == changed["version"]


def test_a_lost_node_ends_the_server_and_its_silence_ends_the_node(nodes: Nodes) -> None:
    """The last test of these servers: a node freezes, as a machine does that the net has lost.

    The server gives it up and ends with an error, and its requests with it. When the node wakes,
    nobody has called it for as long, and it ends as well.
    """
    frozen = nodes.second.family()
    assert any("EngineCore_DP1" in process.name() for process in frozen)
    outcomes: list[int | str] = []

    def ask() -> None:
        try:
            body = {"max_tokens": 200, "ignore_eos": True}
            outcomes.append(nodes.first.complete(**body).status_code)
        except httpx.HTTPError as error:
            outcomes.append(type(error).__name__)

    for process in frozen:
        process.suspend()
    clients = [threading.Thread(target=ask) for _ in range(6)]
    try:
        for client in clients:
            client.start()
        ended = nodes.first.server.process.wait(timeout=LOST_S + 180)
    except subprocess.TimeoutExpired:
        pytest.fail(f"the server lives on:\n{nodes.first.server.stderr}")
    finally:
        for process in frozen:
            process.resume()
    for client in clients:
        client.join(timeout=60)
    assert len(outcomes) == len(clients)
    assert {200} < set(outcomes), "one engine has answered, the other has not"
    said = nodes.first.server.stderr
    assert ended == 1, said
    assert "engine 1, which another machine runs, has not answered for 60 s" in said
    assert said.strip().splitlines()[-1].startswith("prefmix: error: the server failed: ")
    assert nodes.first.server.survivors() == []

    assert nodes.second.process.wait(timeout=60) == 1
    assert "the server on the first machine has not been heard for" in nodes.second.stderr
    assert nodes.second.stderr.strip().splitlines()[-1].startswith("prefmix: error: ")
    assert nodes.second.survivors() == []
