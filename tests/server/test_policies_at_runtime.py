"""Adapters that come into a running server and go: exact answers, no failed request, a restart."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from transformers import AutoTokenizer

from prefmix.mixing.ways_to_mix import MIXINGS
from support.admin_server import KEY, PLAIN, TOKEN, wait
from support.checkpoints.tiny_policies import VOCAB_SIZE, build_tokenizer
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

    def start(self, *more: str) -> ServerProcess:
        words = [
            *("--base", str(self._adapted.base)),
            *("--adapter", f"own={self._adapted.adapters[0]}"),
            *("--weights-store", str(self.folder / "weights.json")),
            *("--adapter-slots", "4", "--adapter-slots-without-kv", "1"),
            *("--max-adapter-rank", "8"),
            *("--policies-dir", str(self.folder / "policies"), *more),
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


def test_a_policy_without_kv_cache_is_mixed_by_parameters_alone(runtime: Runtime) -> None:
    assert "3 of them " in runtime.server.stdout
    assert "1 without KV cache mix parameters only" in runtime.server.stdout
    metrics = httpx.get(f"{runtime.server.url}/metrics", verify=PLAIN).text
    assert 'prefmix_kv_bytes_per_token{policy="adapter-slot-3"} 0.0' in metrics
    added = runtime.change("PUT", "/policies/mean", {"adapter": "step-1", "kv_cache": False})
    assert added.status_code == 200, added.text
    weights = {"own": 1.0, "mean": 1.0}
    answer = runtime.answer(weights, preference_mixing="parameters")
    oracle = Oracle([runtime.truth[0], runtime.truth[1]])
    assert np.abs(errors(oracle, answer, "parameters")).max() < TOLERANCE_NATS
    refused = runtime.answer(weights)
    assert refused.status_code == 400
    assert '"preference_mixing": "parameters"' in refused.json()["error"]["message"]
    refused = runtime.admin("PUT", "/profiles/both", {"weights": weights})
    assert refused.status_code == 400
    assert "no KV cache and no logits" in refused.json()["error"]["message"]
    assert runtime.change("DELETE", "/policies/mean?drain=true").status_code == 200


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


KIND, BRIEF = "Be the xylophone kind one.", "One xylophone."
USER = {"role": "user", "content": "what?"}


class Conversation:
    """Chat of the policy `own` and the policy `voice`, which is the base under a text or none."""

    def __init__(self, adapted: AdaptedBase) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(adapted.base)
        self._oracle = Oracle([adapted.merged[0], adapted.base])

    def _ids(self, *messages: dict[str, str]) -> tuple[int, ...]:
        rendered = self._tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_dict=True
        )
        return tuple(rendered["input_ids"])

    def worst(self, content: list[dict[str, Any]], text: str) -> float:
        """The largest error of the log-probabilities in an answer, if `voice` has read a text."""
        own, voice = self._ids(USER), self._ids({"role": "system", "content": text}, USER)
        job = Job(prompt=voice, weights=(0.5, 0.5), heads=(own, voice))
        tokens = [int(each["token"].removeprefix("token_id:")) for each in content]
        logprobs = [each["logprob"] for each in content]
        return float(np.abs(self._oracle.errors(job, tokens, logprobs)).max())

    def body(self, **body: Any) -> dict[str, Any]:
        return {
            "messages": [USER],
            "preference_weights": {"own": 1, "voice": 1},
            "seed": 3,
            "max_tokens": 8,
            "logprobs": True,
            "ignore_eos": True,
            "return_tokens_as_token_ids": True,
            **body,
        }

    def ask(self, runtime: Runtime) -> httpx.Response:
        url = f"{runtime.server.url}/v1/chat/completions"
        headers = {"Authorization": f"Bearer {KEY}"}
        return httpx.post(url, json=self.body(), headers=headers, timeout=120, verify=PLAIN)

    def exact(self, runtime: Runtime, text: str) -> bool:
        response = self.ask(runtime)
        assert response.status_code == 200, response.text
        assert "xylophone" not in response.text
        content = response.json()["choices"][0]["logprobs"]["content"]
        return self.worst(content, text) < TOLERANCE_NATS


@pytest.fixture(scope="module")
def conversation(adapted: AdaptedBase) -> Conversation:
    return Conversation(adapted)


def test_a_prompt_is_replaced_under_a_conversation_that_keeps_it(
    runtime: Runtime, conversation: Conversation
) -> None:
    came = runtime.change("PUT", "/policies/voice", {"system": KIND})
    assert came.status_code == 200, came.text
    assert conversation.exact(runtime, KIND)
    content: list[dict[str, Any]] = []
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.stream(
        "POST",
        f"{runtime.server.url}/v1/chat/completions",
        json=conversation.body(max_tokens=160, stream=True, n=8),  # long enough for what follows
        headers=headers,
        timeout=120,
        verify=PLAIN,
    ) as stream:
        lines = (line.removeprefix("data: ") for line in stream.iter_lines() if line)
        next(lines)
        replaced = runtime.admin("PUT", "/policies/voice", {"system": BRIEF})
        assert replaced.status_code == 200, replaced.text
        # It uses the slot still, in which the next conversation reads the other prompt.
        assert runtime.admin("DELETE", "/policies/voice").status_code == 503
        assert conversation.exact(runtime, BRIEF)
        for line in lines:
            for choice in json.loads(line)["choices"] if line != "[DONE]" else ():
                if choice["index"] == 0:
                    content += (choice["logprobs"] or {}).get("content") or []
    assert len(content) == 160
    assert conversation.worst(content, KIND) < TOLERANCE_NATS
    assert conversation.exact(runtime, BRIEF)
    refused = runtime.admin("PUT", "/policies/voice", {"system": KIND * 100})
    assert refused.status_code == 400
    assert "has a system text that is too long here" in refused.json()["error"]["message"]
    assert runtime.change("DELETE", "/policies/voice").status_code == 200
    assert conversation.ask(runtime).status_code == 400
    assert runtime.change("PUT", "/policies/voice", {"system": KIND}).status_code == 200
    assert conversation.exact(runtime, KIND)
    assert runtime.change("DELETE", "/policies/voice").status_code == 200
    assert "xylophone" not in runtime.server.stderr + runtime.server.stdout + refused.text


def test_a_policy_is_replaced_in_its_own_slot_where_no_other_is_free(runtime: Runtime) -> None:
    """Each answer is that of the adapter which its version has; in between there are none."""
    given: dict[str, Any] = {name: {"adapter": "step-1"} for name in ("fresh", "other")}
    for name, body in {**given, "voice": {"system": KIND}}.items():
        put = runtime.change("PUT", f"/policies/{name}", body)
        assert put.status_code == 200, put.text
    full = runtime.admin("PUT", "/policies/fresh", {"adapter": "step-2"})
    assert (full.status_code, "with drain=true" in full.text) == (409, True)
    content = {put.json()["version"]: 1}
    answers: list[tuple[int, httpx.Response]] = []
    failures: list[str] = []
    is_over = threading.Event()

    def client(seed: int) -> None:
        while not is_over.is_set():
            response = runtime.answer({"own": 1, "fresh": 1}, seed=seed)
            if response.status_code == 200:
                version = int(response.headers["x-prefmix-weights-version"])
                answers.append((version, response))
            elif response.status_code != 503 or "is being replaced" not in response.text:
                failures.append(response.text)
                return

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(2)]
    for thread in clients:
        thread.start()
    try:
        for number in (2, 1, 2):
            path = "/policies/fresh?drain=true"
            replaced = runtime.admin("PUT", path, {"adapter": f"step-{number}"})
            assert replaced.status_code == 200, replaced.text
            content[replaced.json()["version"]] = number
            time.sleep(0.3)
    finally:
        is_over.set()
        for thread in clients:
            thread.join()
    assert failures == []
    assert len({version for version, _ in answers}) > 2
    oracles = {number: Oracle([runtime.truth[0], runtime.truth[number]]) for number in (1, 2)}
    for version, response in answers[-60:]:
        worst = np.abs(errors(oracles[content[version]], response, "logits")).max()
        assert worst < TOLERANCE_NATS, (version, content[version])
    # A rollback brings one into the slot of another that goes with it.
    assert runtime.change("DELETE", "/policies/other").status_code == 200
    third = runtime.change("PUT", "/policies/third", {"adapter": "step-2"})
    assert third.status_code == 200, third.text
    other, beside = ({"own": 1, name: 1} for name in ("other", "third"))
    assert np.abs(errors(oracles[2], runtime.answer(beside), "logits")).max() < TOLERANCE_NATS
    back = runtime.change("POST", "/weights/rollback", {"version": max(content)})
    assert back.status_code == 200, back.text
    assert np.abs(errors(oracles[1], runtime.answer(other), "logits")).max() < TOLERANCE_NATS
    assert runtime.answer(beside).status_code == 400
    for name in ("other", "voice"):
        assert runtime.change("DELETE", f"/policies/{name}").status_code == 200


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
    # One of another base with the same shapes, which the tokenizer beside it tells apart.
    shutil.copytree(runtime.folder / "policies" / "step-1", broken, dirs_exist_ok=True)
    build_tokenizer(vocab_size=VOCAB_SIZE - 10).save_pretrained(broken)
    refused = runtime.admin("PUT", "/policies/fresh", {"adapter": "broken"})
    assert refused.status_code == 400
    message = refused.json()["error"]["message"]
    assert "'fresh' cannot be mixed: their vocabularies" in message, message
    assert runtime.admin("GET", "/policies").json() == before


def test_a_server_starts_again_with_the_same_policies(
    runtime: Runtime, conversation: Conversation
) -> None:
    runtime.change("DELETE", "/policies/other")
    for name, body in (("fresh", {"adapter": "step-2"}), ("voice", {"system": BRIEF})):
        put = runtime.change("PUT", f"/policies/{name}", body)
        assert put.status_code == 200, put.text
    before = runtime.admin("GET", "/policies").json()
    named = {"fresh": "step-2", "voice": {"system": BRIEF}}
    assert named.keys() == {each["name"] for each in before["policies"] if each["added"]}
    manifest = runtime.folder / "policies.yaml"
    manifest.write_text(json.dumps({"policies": named}))
    runtime.end()
    runtime.start("--policies-manifest", str(manifest)).wait_ready()
    assert runtime.admin("GET", "/policies").json() == {**before, "manifest": str(manifest)}
    assert "fresh" in runtime.names()

    def check(number: int) -> None:
        oracle = Oracle([runtime.truth[0], runtime.truth[number]])
        for mixing in MIXINGS:
            found = errors(
                oracle, runtime.answer({"own": 1, "fresh": 1}, preference_mixing=mixing), mixing
            )
            assert np.abs(found).max() < TOLERANCE_NATS

    check(2)
    assert conversation.exact(runtime, BRIEF)
    # The manifest brings another adapter, and no request does.
    assert runtime.admin("PUT", "/policies/fresh", {"adapter": "step-1"}).status_code == 409
    check(2)
    manifest.write_text(json.dumps({"policies": {"fresh": "step-1"}}))
    wait(lambda: runtime.admin("GET", "/policies").json()["version"] > before["version"])
    check(1)
    slots = runtime.admin("GET", "/policies").json()["slots"]
    assert slots["free"] == slots["total"] - 1
    runtime.end()
