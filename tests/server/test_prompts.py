"""One base under several prompts over HTTP: every answer's figures against transformers."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from transformers import AutoTokenizer

from support.engines import AdaptedBase
from support.exactness import Job, Oracle
from support.preloaded_server import Preloaded
from support.server_process import API_KEY, ServerProcess, engine_flags, free_port, run_prefmix

KIND = "You are the xylophone kind voice, which answers at some length and never in haste."
BRIEF = "Be xylophone."
MEMBERS = ("kind", "brief", "plain")
TOLERANCE_NATS = 2e-4
USER = {"role": "user", "content": "what is mixed here?"}
Message = dict[str, str]


@pytest.fixture(scope="module")
def server(
    adapted: AdaptedBase, tmp_path_factory: pytest.TempPathFactory, preloaded: Preloaded
) -> Iterator[ServerProcess]:
    """The base under a text, an adapter under another, and the base alone as the reference."""
    folder = tmp_path_factory.mktemp("prompts")
    config = {
        "base": str(adapted.base),
        "policies": {
            "kind": {"system": KIND},
            "brief": {"adapter": str(adapted.adapters[0]), "system": BRIEF},
        },
        "reference": {"plain": {}},
        "weight_space": "affine",
        "request_prompts": True,
        "engine": {"api_key": API_KEY},
    }
    path = folder / "mixture.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    running = ServerProcess(
        folder, [str(path), *engine_flags(**{"max-model-len": 512})], preloaded=preloaded
    )
    try:
        yield running.wait_ready()
        code = running.end(signal.SIGTERM)
        assert (code, running.survivors()) == (0, []), running.stderr
        assert "rror" not in running.stderr
        assert "xylophone" not in running.stderr + running.stdout
    finally:
        running.kill()


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


class Truth:
    """The same by transformers: its templates, its models."""

    def __init__(self, adapted: AdaptedBase) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(adapted.base)
        self._oracle = Oracle([adapted.base, adapted.merged[0], adapted.base])

    def chat(self, messages: Sequence[Message]) -> list[int]:
        return list(
            self._tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, return_dict=True
            )["input_ids"]
        )

    def text(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=True)["input_ids"])

    def worst(
        self, answer: dict[str, Any], prompts: Sequence[list[int] | None], weights: Sequence[float]
    ) -> float:
        """The largest error of a token of a choice. Also compares the counts of tokens."""
        lengths = {
            name: len(ids) for name, ids in zip(MEMBERS, prompts, strict=True) if ids is not None
        }
        given = [ids if ids is not None else [2] for ids in prompts]
        longest = max(given, key=len)
        job = Job(
            prompt=tuple(longest), weights=tuple(weights), heads=tuple(tuple(ids) for ids in given)
        )
        worst = 0.0
        for choice in answer["choices"]:
            tokens, logprobs = figures(choice)
            assert tokens
            worst = max(worst, abs(self._oracle.errors(job, tokens, logprobs)).max())
        assert answer["usage"]["prompt_tokens"] == max(lengths.values())
        if any(ids != longest for ids in prompts if ids is not None):
            assert answer["prefmix"]["prompt_tokens"] == lengths
        return worst


@pytest.fixture(scope="module")
def truth(adapted: AdaptedBase) -> Truth:
    return Truth(adapted)


def figures(choice: dict[str, Any]) -> tuple[list[int], list[float]]:
    logprobs = choice["logprobs"]
    if "content" in logprobs:
        pairs = [(each["token"], each["logprob"]) for each in logprobs["content"]]
    else:
        pairs = list(zip(logprobs["tokens"], logprobs["token_logprobs"], strict=True))
    return [int(name.removeprefix("token_id:")) for name, _ in pairs], [each for _, each in pairs]


def ask(client: httpx.Client, weights: dict[str, float] | None = None, **body: Any) -> Any:
    is_chat = "messages" in body
    wanted = {"logprobs": True, "top_logprobs": 0} if is_chat else {"logprobs": 0}
    settings = {"max_tokens": 12, "seed": 3, "ignore_eos": True, "return_tokens_as_token_ids": True}
    chosen = {} if weights is None else {"preference_weights": weights}
    path = "/v1/chat/completions" if is_chat else "/v1/completions"
    answer = client.post(path, json={**settings, **wanted, **chosen, **body})
    assert answer.status_code == 200, answer.text
    assert "xylophone" not in answer.text
    return answer.json()


def system(text: str, *messages: Message) -> list[Message]:
    return [{"role": "system", "content": text}, *messages]


@pytest.mark.parametrize(
    "weights",
    [(0.5, 0.5, 0.0), (0.3, 0.3, 0.4), (1.6, 0.0, -0.6), (0.0, 1.0, 0.0), (2.0, -1.5, 0.5)],
)
def test_each_policy_reads_its_own_system_text(
    client: httpx.Client, truth: Truth, weights: tuple[float, float, float]
) -> None:
    answer = ask(client, dict(zip(MEMBERS, weights, strict=True)), messages=[USER], n=2)
    prompts = [
        truth.chat(messages) if weight else None
        for weight, messages in zip(
            weights, (system(KIND, USER), system(BRIEF, USER), [USER]), strict=True
        )
    ]
    assert truth.worst(answer, prompts, weights) < TOLERANCE_NATS


def test_a_clients_system_message_comes_after_the_servers_text(
    client: httpx.Client, truth: Truth
) -> None:
    answer = ask(client, {"kind": 0.5, "brief": 0.25}, messages=system("Be exact.", USER))
    prompts = [
        truth.chat(system(f"{KIND}\n\nBe exact.", USER)),
        truth.chat(system(f"{BRIEF}\n\nBe exact.", USER)),
        truth.chat(system("Be exact.", USER)),
    ]
    assert truth.worst(answer, prompts, (0.5, 0.25, 0.25)) < TOLERANCE_NATS


def hits(client: httpx.Client) -> float:
    found = re.search(
        r"^vllm:prefix_cache_hits_total\{.*\} (\S+)$", client.get("/metrics").text, re.M
    )
    assert found is not None
    return float(found[1])


def test_a_conversation_of_five_turns_hits_the_cache_and_stays_exact(
    client: httpx.Client, truth: Truth
) -> None:
    weights = (0.4, 0.4, 0.2)
    messages: list[Message] = [USER]
    found = []
    for turn in range(5):
        before = hits(client)
        answer = ask(client, {"kind": 0.4, "brief": 0.4}, messages=messages)
        prompts = [
            truth.chat(each)
            for each in (system(KIND, *messages), system(BRIEF, *messages), messages)
        ]
        assert truth.worst(answer, prompts, weights) < TOLERANCE_NATS
        found.append(hits(client) - before)
        messages = [
            *messages,
            {"role": "assistant", "content": f"it is turn {turn} of a long conversation"},
            {"role": "user", "content": "and what is mixed then? say it with other words"},
        ]
    assert found[-1] > found[1] >= 0, found


def test_prompts_of_a_request_are_read_instead(client: httpx.Client, truth: Truth) -> None:
    other = [{"role": "user", "content": "something else altogether, and longer than the rest"}]
    answer = ask(
        client,
        {"kind": 0.5, "brief": 0.25},
        messages=[USER],
        preference_prompts={"kind": "Mine.", "plain": {"messages": other}},
    )
    prompts = [
        truth.chat(system("Mine.", USER)),
        truth.chat(system(BRIEF, USER)),
        truth.chat(other),
    ]
    assert truth.worst(answer, prompts, (0.5, 0.25, 0.25)) < TOLERANCE_NATS


def test_a_negative_prompt_takes_its_influence_away(client: httpx.Client, truth: Truth) -> None:
    answer = ask(client, {"kind": 2.5}, messages=[USER], preference_prompts={"plain": "Be rude."})
    prompts = [truth.chat(system(KIND, USER)), None, truth.chat(system("Be rude.", USER))]
    assert truth.worst(answer, prompts, (2.5, 0.0, -1.5)) < TOLERANCE_NATS


def test_completions_with_and_without_a_document(client: httpx.Client, truth: Truth) -> None:
    """Context-aware decoding: more of what the document changes."""
    question = "Q: what is mixed? A:"
    document = "Policies are mixed token by token, and weights on the simplex sum to one. "
    with_it = document + question
    answer = ask(client, {"kind": 1.5}, prompt=question, preference_prompts={"kind": with_it})
    prompts = [truth.text(with_it), None, truth.text(question)]
    assert truth.worst(answer, prompts, (1.5, 0.0, -0.5)) < TOLERANCE_NATS
    ids = truth.text(with_it)
    same = ask(client, {"kind": 1.5}, prompt=question, preference_prompts={"kind": ids})
    assert truth.worst(same, prompts, (1.5, 0.0, -0.5)) < TOLERANCE_NATS
    assert [figures(each)[0] for each in same["choices"]] == [
        figures(each)[0] for each in answer["choices"]
    ]


def test_requests_with_and_without_prompts_of_their_own_share_batches(
    client: httpx.Client, truth: Truth
) -> None:
    def one(index: int) -> float:
        text = {"role": "user", "content": "a question " * (1 + index % 4)}
        if index % 3 == 0:
            answer = ask(client, {"plain": 1}, messages=[text], seed=index)
            return truth.worst(answer, [None, None, truth.chat([text])], (0, 0, 1))
        answer = ask(client, {"kind": 0.7, "brief": 0.3}, messages=[text], seed=index)
        prompts = [truth.chat(system(KIND, text)), truth.chat(system(BRIEF, text)), None]
        return truth.worst(answer, prompts, (0.7, 0.3, 0))

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(one, range(16))) < TOLERANCE_NATS


def test_streams_candidates_and_attribution_are_of_the_prompted_policies(
    client: httpx.Client, truth: Truth
) -> None:
    answer = ask(
        client,
        {"kind": 0.5, "brief": 0.5},
        messages=[USER],
        preference_candidates=2,
        preference_attribution=True,
    )
    prompts = [truth.chat(system(KIND, USER)), truth.chat(system(BRIEF, USER)), None]
    assert truth.worst(answer, prompts, (0.5, 0.5, 0.0)) < TOLERANCE_NATS
    [choice] = answer["choices"]
    assert answer.get("prompt_token_ids") is None
    assert choice.get("prompt_token_ids") is None
    assert set(choice["preference_attribution"]["policies"]) == set(MEMBERS)
    body = {"messages": [USER], "max_tokens": 3, "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body) as stream:
        events = "".join(stream.iter_text())
    assert '"prompt_tokens": {"kind": ' in events
    assert "xylophone" not in events


def test_a_prompt_too_long_for_one_policy_is_refused(client: httpx.Client) -> None:
    """It fits those that have no system text, but not with one."""
    text = {"role": "user", "content": "x " * 228}
    for weights, status in (({"plain": 1}, 200), ({"kind": 1}, 400)):
        body = {"messages": [text], "max_tokens": 1, "preference_weights": weights}
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == status, answer.text
        assert "xylophone" not in answer.text


def test_a_template_that_refuses_system_messages_ends_the_start(
    adapted: AdaptedBase, tmp_path: Path, preloaded: Preloaded
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{{ message['content'] }}{% endfor %}"
    )
    words = ["--base", str(adapted.base), "--system", f"kind={KIND}", *engine_flags()]
    ended = run_prefmix(
        "serve",
        "--port",
        str(free_port()),
        *words,
        f"--chat-template={template}",
        preloaded=preloaded,
    )
    assert ended.returncode == 1, ended.stderr
    assert "policy 'kind' has a system text" in ended.stderr
    assert "System role not supported" in ended.stderr
    assert "xylophone" not in ended.stdout + ended.stderr


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_cannot_take_is_refused_in_a_sentence(
    client: httpx.Client, stream: bool
) -> None:
    body = {"messages": [USER], "max_tokens": 2, "stream": stream, "prompt_logprobs": 1}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert "prompt_logprobs" in answer.json()["error"]["message"]


def test_no_page_shows_a_text(client: httpx.Client) -> None:
    mixture = client.get("/v1/mixture").json()
    assert [each["has_prompt"] for each in mixture["policies"]] == [True, True]
    assert (mixture["reference"]["has_prompt"], mixture["request_prompts"]) == (False, True)
    pages = ("/v1/mixture", "/v1/models", "/metrics", "/console", "/openapi.json", "/version")
    for page in pages:
        assert "xylophone" not in client.get(page).text
    tokens = client.post("/tokenize", json={"messages": [USER]})
    assert tokens.status_code == 200
    assert len(tokens.json()["tokens"]) < 60


def test_tokens_of_prompts_are_counted_by_policy(client: httpx.Client) -> None:
    def counted() -> dict[str, float]:
        text = client.get("/metrics").text
        found = re.findall(r'^prefmix_prompt_tokens_total\{policy="(\w+)"\} (\S+)$', text, re.M)
        return {name: float(value) for name, value in found}

    before = counted()
    assert set(before) == set(MEMBERS)
    answer = ask(client, {"kind": 0.5, "brief": 0.5}, messages=[USER])
    risen = {name: value - before[name] for name, value in counted().items()}
    assert risen == {**answer["prefmix"]["prompt_tokens"], "plain": 0}
