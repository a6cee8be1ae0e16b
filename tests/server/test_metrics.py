"""A real server reports metrics, attribution and a log of its requests."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.admin_server import wait
from support.preloaded_server import Preloaded
from support.server_process import ServerProcess, engine_flags

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "metrics-admin-token"
KL_OF_UNIFORM = {"preference_weights": {"one": 1, "two": 1, "three": 1}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "weights.json"


@pytest.fixture(scope="module")
def server(
    policies: list[Path],
    store: Path,
    tmp_path_factory: pytest.TempPathFactory,
    preloaded: Preloaded,
) -> Iterator[ServerProcess]:
    """Every step is measured; each request is logged."""
    words = [f"--policy={folder.name}={folder}" for folder in policies]
    words += ["--statistics-every", "1", "--request-log", "json", "--weights-store", str(store)]
    folder = tmp_path_factory.mktemp("server")
    process = ServerProcess(
        folder, [*words, *engine_flags()], preloaded=preloaded, PREFMIX_ADMIN_TOKEN=TOKEN
    )
    try:
        process.wait_ready()
        yield process
    finally:
        process.interrupt()
        process.kill()


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with server.client(key=None) as client:
        yield client


def scrape(client: httpx.Client) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
    }


def value(samples: dict[Any, float], name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def settled(client: httpx.Client, at_least: float) -> dict[Any, float]:
    """A scrape that has at least so many measured tokens; the server fetches them in turns."""
    for _ in range(60):
        samples = scrape(client)
        if value(samples, "prefmix_statistics_tokens_total") >= at_least:
            return samples
        time.sleep(0.5)
    raise AssertionError("the engine's figures never arrived")


def all_fetched(client: httpx.Client) -> dict[Any, float]:
    """A scrape with all that has been measured: its last token has a weight as no other has."""

    def marked() -> float:
        samples = scrape(client)
        name, policy = "prefmix_token_weight_bucket", "one"
        return value(samples, name, policy=policy, le="0.2") - value(
            samples, name, policy=policy, le="0.1"
        )

    before = marked()
    complete(client, max_tokens=1, preference_weights={"one": 15, "two": 85})
    wait(lambda: marked() > before)
    return scrape(client)


def complete(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    body = {"prompt": "the quick brown", "max_tokens": 8, "ignore_eos": True, "seed": 1, **fields}
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_the_documented_table_is_what_a_scrape_has(client: httpx.Client) -> None:
    complete(client)
    families = {
        family.name: family
        for family in text_string_to_metric_families(client.get("/metrics").text)
        if family.name.startswith("prefmix_") and not family.name.endswith("_created")
    }
    rows = re.findall(
        r"^\| `(prefmix_\w+)` \| (\w+) \| ([^|]*)\|",
        (ROOT / "docs" / "metrics.md").read_text(),
        re.MULTILINE,
    )
    documented = {}
    for name, kind, labels in rows:
        names = {each.strip() for each in labels.split(",") if each.strip()}
        documented[name.removesuffix("_total")] = (kind, names)
    served = {
        name: (
            family.type,
            {label for sample in family.samples for label in sample.labels} - {"le"},
        )
        for name, family in families.items()
    }
    assert served == documented
    assert all(family.documentation for family in families.values())


def test_requests_are_counted_by_profile_and_outcome(client: httpx.Client) -> None:
    before = scrape(client)
    complete(client)
    complete(client, preference_weights={"one": 1})
    for weights in ({"nobody": 1}, {"one": -1}, {}):
        body = {"prompt": "x", "preference_weights": weights}
        assert client.post("/v1/completions", json=body).status_code == 400
    with client.stream(
        "POST", "/v1/completions", json={"prompt": "x", "max_tokens": 200, "stream": True}
    ) as stream:
        next(stream.iter_bytes())
    cancelled = {"profile": "default", "outcome": "cancelled"}
    counted = value(before, "prefmix_requests_total", **cancelled)
    wait(lambda: value(scrape(client), "prefmix_requests_total", **cancelled) > counted)
    after = scrape(client)

    def more(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert more("prefmix_requests_total", **cancelled) == 1
    assert more("prefmix_requests_total", profile="default", outcome="ok") == 1
    assert more("prefmix_requests_total", profile="custom", outcome="ok") == 1
    assert more("prefmix_requests_total", profile="none", outcome="rejected") == 3
    for reason in ("unknown_policy", "negative", "empty"):
        assert more("prefmix_weights_rejected_total", reason=reason) == 1


def test_profiles_and_changes_of_them_are_shown(client: httpx.Client, store: Path) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    before = scrape(client)
    body = {"weights": {"one": 0.25, "two": 0.75}}
    changed = client.put("/admin/profiles/tilted", json=body, headers=headers).json()
    samples = scrape(client)
    assert value(samples, "prefmix_profile_weight", profile="tilted", policy="two") == 0.75
    assert value(samples, "prefmix_profile_weight", profile="tilted", policy="three") == 0
    assert value(samples, "prefmix_weights_version") == changed["version"]
    assert value(samples, "prefmix_weights_info", sha256=changed["sha256"]) == 1
    assert value(samples, "prefmix_weights_changes_total", result="ok") == 1 + value(
        before, "prefmix_weights_changes_total", result="ok"
    )
    assert client.delete("/admin/profiles/tilted", headers=headers).status_code == 200
    gone = {name for name, labels in scrape(client) if ("profile", "tilted") in labels}
    assert gone <= {"prefmix_requests_total", "prefmix_requests_created"}
    good = store.read_text()
    try:
        store.write_text("{")
        refused = client.post("/admin/weights/reload", headers=headers)
        assert refused.status_code >= 400
        samples = scrape(client)
        assert value(samples, "prefmix_weights_last_reload_successful") == 0
        assert (
            value(samples, "prefmix_weights_reloads_total", trigger="admin", result="refused") == 1
        )
        assert client.get("/health").status_code == 200
    finally:
        store.write_text(good)
    assert client.post("/admin/weights/reload", headers=headers).status_code == 200
    assert value(scrape(client), "prefmix_weights_last_reload_successful") == 1


def test_measured_tokens_add_up(client: httpx.Client) -> None:
    before = all_fetched(client)
    num_tokens = value(before, "prefmix_statistics_tokens_total")
    answer = complete(client, preference_attribution=True, **KL_OF_UNIFORM)
    after = settled(client, num_tokens + 8)
    assert value(after, "prefmix_statistics_tokens_total") == num_tokens + 8
    attribution = answer["choices"][0]["preference_attribution"]
    for policy, figures in attribution["policies"].items():
        for name, mean in (
            ("kl_nats", figures["mean_kl"]),
            ("agreement_tokens", figures["agreement"]),
        ):
            name = f"prefmix_{name}_total"
            more = value(after, name, policy=policy) - value(before, name, policy=policy)
            assert more / 8 == pytest.approx(mean, abs=1e-5)
    entropy = "prefmix_entropy_nats_total"
    assert (value(after, entropy) - value(before, entropy)) / 8 == pytest.approx(
        attribution["mean_entropy"], abs=1e-5
    )
    assert value(after, "prefmix_step_seconds_total", part="forward") > 0
    assert value(after, "prefmix_parameter_bytes", policy="one") > 0


def test_attribution_agrees_with_one_hot_scores(client: httpx.Client) -> None:
    """A policy's mean log-prob of the answer equals that of the policy alone on the same tokens."""
    weights = {"one": 0.5, "two": 0.3, "three": 0.2}
    fields = {"preference_weights": weights, "logprobs": 0, "return_token_ids": True}
    answer = complete(client, preference_attribution="tokens", **fields)
    [choice] = answer["choices"]
    attribution = choice["preference_attribution"]
    assert attribution["num_tokens"] == len(attribution["tokens"]) == 8
    assert attribution["mean_logprob"] == pytest.approx(
        sum(choice["logprobs"]["token_logprobs"]) / 8, abs=1e-4
    )
    tokens = [*choice["prompt_token_ids"], *choice["token_ids"]]
    for policy, figures in attribution["policies"].items():
        scored = client.post(
            "/v1/completions",
            json={
                "prompt": tokens,
                "max_tokens": 1,
                "echo": True,
                "logprobs": 0,
                "preference_weights": {policy: 1},
            },
        ).json()["choices"][0]["logprobs"]["token_logprobs"]
        alone = scored[len(choice["prompt_token_ids"]) : len(tokens)]
        assert figures["mean_logprob"] == pytest.approx(sum(alone) / 8, abs=1e-4)
        by_token = [token["logprobs"][policy] for token in attribution["tokens"]]
        assert by_token == pytest.approx(alone, abs=1e-4)
    for token in attribution["tokens"]:
        assert token["wanted_by"] == max(token["logprobs"], key=token["logprobs"].get)


def test_every_choice_has_its_own_attribution_streamed_or_not(client: httpx.Client) -> None:
    fields = {"prompt": ["the quick", "weights on"], "n": 2, "preference_attribution": True}
    whole = complete(client, logprobs=0, **fields)["choices"]
    assert [choice["index"] for choice in whole] == [0, 1, 2, 3]
    streamed: dict[int, Any] = {}
    body = {"max_tokens": 8, "ignore_eos": True, "seed": 1, "stream": True, "logprobs": 0, **fields}
    sums: dict[int, float] = {}
    with client.stream("POST", "/v1/completions", json=body) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    index = choice["index"]
                    logprobs = choice["logprobs"]["token_logprobs"] if choice["logprobs"] else []
                    sums[index] = sums.get(index, 0.0) + sum(logprobs)
                    if "preference_attribution" in choice:
                        assert choice["finish_reason"] == "length"
                        streamed[index] = choice["preference_attribution"]
    assert sorted(streamed) == [0, 1, 2, 3]
    for choice in whole:
        found = choice["preference_attribution"]
        mean = sum(choice["logprobs"]["token_logprobs"]) / 8
        assert found["mean_logprob"] == pytest.approx(mean, abs=1e-4)
    for index, found in streamed.items():
        assert found["num_tokens"] == 8
        assert found["mean_logprob"] == pytest.approx(sums[index] / 8, abs=1e-4)


@pytest.mark.parametrize("wish", [3, "yes", {}, []])
def test_a_wish_that_is_none_is_refused(client: httpx.Client, wish: object) -> None:
    body = {"prompt": "x", "preference_attribution": wish}
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "preference_attribution"


def test_the_responses_api_says_that_it_has_none(client: httpx.Client) -> None:
    body = {"input": "x", "preference_attribution": True}
    response = client.post("/v1/responses", json=body)
    assert response.status_code == 400
    assert "/v1/chat/completions" in response.json()["error"]["message"]


def test_each_request_is_one_line_without_its_text(
    client: httpx.Client, server: ServerProcess
) -> None:
    response = client.post(
        "/v1/completions",
        json={"prompt": "a secret prompt", "max_tokens": 4, "ignore_eos": True},
        headers={"x-request-id": "my-own-id"},
    )
    assert response.headers["x-request-id"] == "my-own-id"

    def request_lines() -> list[dict[str, Any]]:
        written = server.stderr.rpartition("\n")[0].splitlines()
        found = [json.loads(line) for line in written if line.startswith("{")]
        return [line for line in found if "request_id" in line]  # others tell of changes

    # The line takes its own way, through the server's stderr.
    wait(lambda: "my-own-id" in {line["request_id"] for line in request_lines()})
    lines = request_lines()
    [line] = [line for line in lines if line["request_id"] == "my-own-id"]
    assert (line["status"], line["outcome"], line["profile"]) == (200, "ok", "default")
    assert line["completion_tokens"] == 4
    assert line["duration_s"] > 0
    assert "secret" not in server.stderr
    assert len({line["request_id"] for line in lines}) == len(lines)
