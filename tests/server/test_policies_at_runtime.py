"""Adapters that come into a running server and go: exact answers, no failed request, a restart."""

from __future__ import annotations

import random
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from prefmix.mixing.ways_to_mix import MIXINGS
from support.admin_server import KEY, PLAIN, TOKEN
from support.engines import AdaptedBase
from support.exactness import TOLERANCE_NATS, Job, Oracle
from support.preloaded_server import Preloaded
from support.server_process import ServerProcess

NUM_CLIENTS = 4
NUM_CHANGES = 12


class Runtime:
    """A server with one policy of its own, and adapters 1 and 2 in its folder of policies."""

    def __init__(self, folder: Path, adapted: AdaptedBase, preloaded: Preloaded) -> None:
        self.folder, self._adapted, self._preloaded = folder, adapted, preloaded
        for number in (1, 2):
            shutil.copytree(adapted.adapters[number], folder / "policies" / f"step-{number}")
        self.truth = {0: adapted.merged[0], 1: adapted.merged[1], 2: adapted.merged[2]}
        self.server = self.start()

    def start(self) -> ServerProcess:
        words = [
            *("--base", str(self._adapted.base)),
            *("--adapter", f"own={self._adapted.adapters[0]}"),
            *("--weights-store", str(self.folder / "weights.json")),
            *("--adapter-slots", "3", "--max-adapter-rank", "8"),
            *("--policies-dir", str(self.folder / "policies")),
            *("--", "--dtype", "float32", "--enforce-eager", "--max-model-len", "256"),
            *("--kv-cache-memory-bytes", str(2**26)),
        ]
        environ = {"PREFMIX_ADMIN_TOKEN": TOKEN, "VLLM_API_KEY": KEY}
        self.server = ServerProcess(self.folder, words, preloaded=self._preloaded, **environ)
        return self.server

    def end(self) -> None:
        """Ends the server in order, unless it has ended."""
        if self.server.process.poll() is None:
            code = self.server.end(signal.SIGTERM)
            assert (code, self.server.survivors()) == (0, []), self.server.stderr
            assert "Traceback" not in self.server.stderr

    def admin(self, method: str, path: str, body: Any = None) -> httpx.Response:
        return httpx.request(
            method,
            f"{self.server.url}/admin{path}",
            json=body,
            headers={"Authorization": f"Bearer {TOKEN}"},
            timeout=120,
            verify=PLAIN,
        )

    def change(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """`admin`, again while requests still use what has left the free slots."""
        response = self.admin(method, path, body)
        for _ in range(10):
            if response.status_code != 503:
                break
            response = self.admin(method, path, body)
        return response

    def names(self) -> list[str]:
        headers = {"Authorization": f"Bearer {KEY}"}
        found = httpx.get(f"{self.server.url}/v1/mixture", headers=headers, verify=PLAIN).json()
        return [each["name"] for each in found["policies"]]

    def answer(self, weights: dict[str, float], **body: Any) -> httpx.Response:
        body = {
            "prompt": list(range(5, 12)),
            "max_tokens": 8,
            "logprobs": 0,
            "return_token_ids": True,
            "ignore_eos": True,
            "preference_weights": weights,
            **body,
        }
        headers = {"Authorization": f"Bearer {KEY}"}
        url = f"{self.server.url}/v1/completions"
        return httpx.post(url, json=body, headers=headers, timeout=120, verify=PLAIN)


@pytest.fixture(scope="module")
def runtime(
    tmp_path_factory: pytest.TempPathFactory, adapted: AdaptedBase, preloaded: Preloaded
) -> Iterator[Runtime]:
    found = Runtime(tmp_path_factory.mktemp("runtime"), adapted, preloaded)
    try:
        found.server.wait_ready()
        yield found
        found.end()
    finally:
        found.server.kill()


def errors(oracle: Oracle, response: httpx.Response, mixing: Any) -> np.ndarray:
    """Served minus true log-probabilities of equal weights on the oracle's two models."""
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    job = Job(prompt=tuple(range(5, 12)), weights=(0.5, 0.5), mixing=mixing)
    return oracle.errors(job, choice["token_ids"], choice["logprobs"]["token_logprobs"])


def test_the_ready_table_says_what_a_slot_costs(runtime: Runtime) -> None:
    [line] = [each for each in runtime.server.stdout.splitlines() if each.startswith("slots ")]
    found = re.search(r"each takes ([\d,]+) bytes of parameters on a rank, and ([\d,]+)", line)
    assert found is not None
    metrics = httpx.get(f"{runtime.server.url}/metrics", verify=PLAIN).text
    taken = re.search(r'prefmix_parameter_bytes\{policy="adapter-slot-0"\} (\S+)', metrics)
    assert taken is not None
    assert float(taken[1]) == float(found[1].replace(",", "")) > 0


def test_answers_are_exact_through_random_changes_under_load(runtime: Runtime) -> None:
    """Each answer says its version, and is that of the adapter which the version has."""
    generator = random.Random(0)
    content: dict[int, int] = {}
    answers: list[tuple[int, str, httpx.Response]] = []
    failures: list[str] = []
    is_over = threading.Event()

    def put(number: int) -> None:
        changed = runtime.change("PUT", "/policies/fresh", {"adapter": f"step-{number}"})
        assert changed.status_code == 200, changed.text
        content[changed.json()["version"]] = number

    def client(seed: int) -> None:
        own = random.Random(seed)
        while not is_over.is_set():
            mixing = own.choice(MIXINGS)
            response = runtime.answer(
                {"own": 1, "fresh": 1}, preference_mixing=mixing, seed=own.randrange(10**6)
            )
            if response.status_code != 200:
                failures.append(response.text)
                return
            version = int(response.headers["x-prefmix-weights-version"])
            answers.append((version, mixing, response))

    put(1)
    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(NUM_CLIENTS)]
    for thread in clients:
        thread.start()
    try:
        other = False
        for _ in range(NUM_CHANGES):
            action = generator.choice(("replace", "replace", "other"))
            if action == "replace":
                put(generator.choice((1, 2)))
            elif other:
                gone = runtime.admin("DELETE", "/policies/other")
                assert gone.status_code == 200, gone.text
                content[gone.json()["version"]] = content[max(content)]
                other = False
            else:
                came = runtime.change("PUT", "/policies/other", {"adapter": "step-2"})
                assert came.status_code == 200, came.text
                content[came.json()["version"]] = content[max(content)]
                other = True
    finally:
        is_over.set()
        for thread in clients:
            thread.join()
    assert failures == []
    metrics = httpx.get(f"{runtime.server.url}/metrics", verify=PLAIN).text
    stall = re.search(r"^prefmix_policy_stall_seconds (\S+)", metrics, flags=re.MULTILINE)
    assert stall is not None
    print("the engine stood still for", stall[1], "s")
    assert float(stall[1]) > 0
    assert len({content[version] for version, _, _ in answers}) == 2, "both contents were asked"
    oracles = {number: Oracle([runtime.truth[0], runtime.truth[number]]) for number in (1, 2)}
    for version, mixing, response in answers[-120:]:
        worst = np.abs(errors(oracles[content[version]], response, mixing)).max()
        assert worst < TOLERANCE_NATS, (version, mixing, content[version])


def test_a_policy_that_has_gone_is_unknown_and_its_series_end(runtime: Runtime) -> None:
    came = runtime.admin("PUT", "/policies/brief", {"adapter": "step-1"})
    assert came.status_code == 200, came.text
    assert "brief" in runtime.names()
    attributed = runtime.answer({"own": 1, "brief": 1}, preference_attribution=True).json()
    policies = attributed["choices"][0]["preference_attribution"]["policies"]
    assert policies["brief"]["mean_logprob"] < 0
    assert policies["own"]["mean_logprob"] < 0

    def series() -> list[str]:
        metrics = httpx.get(f"{runtime.server.url}/metrics", verify=PLAIN).text
        return [line for line in metrics.splitlines() if 'policy="brief"' in line]

    assert series()
    assert runtime.admin("DELETE", "/policies/brief").status_code == 200
    assert series() == []
    unknown = runtime.answer({"brief": 1})
    assert unknown.status_code == 400
    assert "unknown policy 'brief'" in unknown.json()["error"]["message"].replace('"', "'")


def test_a_broken_adapter_changes_nothing(runtime: Runtime) -> None:
    before = runtime.admin("GET", "/policies").json()
    broken = runtime.folder / "policies" / "broken"
    shutil.copytree(runtime.folder / "policies" / "step-1", broken)
    file = broken / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    for dry_run in ("true", "false"):
        path = f"/policies/fresh?dry_run={dry_run}"
        refused = runtime.admin("PUT", path, {"adapter": "broken"})
        assert refused.status_code == 400
        assert "policy 'fresh': the adapter in" in refused.json()["error"]["message"]
    assert runtime.admin("GET", "/policies").json() == before


def test_a_server_starts_again_with_the_same_policies(runtime: Runtime) -> None:
    put = runtime.admin("PUT", "/policies/fresh", {"adapter": "step-2"})
    assert put.status_code == 200, put.text
    before = runtime.admin("GET", "/policies").json()
    runtime.end()
    runtime.start().wait_ready()
    assert runtime.admin("GET", "/policies").json() == before
    assert "fresh" in runtime.names()
    oracle = Oracle([runtime.truth[0], runtime.truth[2]])
    for mixing in MIXINGS:
        found = errors(
            oracle, runtime.answer({"own": 1, "fresh": 1}, preference_mixing=mixing), mixing
        )
        assert np.abs(found).max() < TOLERANCE_NATS
    runtime.end()
