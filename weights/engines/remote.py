"""A running `prefmix serve` as the engine of a fit, over HTTP.

Responses are drawn and scored through `/v1/completions` with explicit weights, so that the server's
other users notice nothing but load.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import httpx

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.mixing.ways_to_mix import Mixing
from prefmix.weights.engines.engine import Figures, Response
from prefmix.weights.engines.member_prompts import MemberPrompts, PromptTokens, Tokens
from prefmix.weights.engines.prompts import Prompt
from prefmix.weights.engines.proxies import may_use_proxy

CONCURRENCY = 16
"""Requests in flight; each carries several prompts."""
BATCH = 16
"""Prompts a request."""
PATIENCE_S = 600.0
"""Time after which a server that still answers 503 (busy) is given up."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class RemoteError(ValueError):
    """A server that is not reachable, or does not answer as `prefmix serve` does."""


class RemoteEngine:
    """Samples and scores against a running server."""

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 600.0) -> None:
        """Args:
        url: the server's base, such as http://127.0.0.1:8000.
        api_key: its inference key, if it has one.
        timeout_s: limit of one request, in seconds.
        """
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self.url = url.rstrip("/").removesuffix("/v1")
        self._client = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=timeout_s,
            # A redirect would carry the key to wherever it points, a proxy would read it.
            follow_redirects=False,
            transport=None if may_use_proxy(self.url) else httpx.HTTPTransport(),
        )
        self._mixture = self._json("GET", "/v1/mixture")
        prompted = [each["name"] for each in _members(self._mixture) if each.get("has_prompt")]
        if prompted:
            self.close()
            raise RemoteError(
                f"{self.url} gives {prompted[0]!r} a prompt of its own, which it does not tell; "
                "fit and evaluate with its configuration file instead, in this process"
            )
        self.spec = _spec(self._mixture)
        self._at_once: int = self._mixture.get("answers_at_once", CONCURRENCY * BATCH)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    @property
    def profiles(self) -> dict[str, tuple[float, ...]]:
        """Weights of the members, in their order, by profile."""
        return {
            name: tuple(profile["weights"].get(member, 0.0) for member in self.spec.member_names)
            for name, profile in self._mixture["profiles"].items()
        }

    def tokenize(self, prompts: Sequence[Prompt]) -> list[Tokens]:
        """Prompt tokens, chat template applied by the server."""

        def one(prompt: Prompt) -> Tokens:
            body: dict[str, Any] = {"model": self._mixture["model"]}
            if prompt.text is not None:
                body["prompt"] = prompt.text
            else:
                body |= {"messages": list(prompt.messages or ()), "add_generation_prompt": True}
            return tuple(self._json("POST", "/tokenize", body)["tokens"])

        return _concurrently(one, prompts)

    def sample(
        self,
        prompts: Sequence[PromptTokens],
        weights_M: Sequence[float],
        *,
        num_responses: int,
        max_tokens: int,
        seed: int,
        mixing: Mixing = "logits",
    ) -> list[list[Response]]:
        """`num_responses` responses to each prompt at temperature 1, with their figures if logits
        are mixed."""

        size = min(num_responses, self._share)

        def some(item: tuple[Tokens, int, int]) -> list[Response]:
            prompt, first_seed, count = item
            answer = self._complete(
                [prompt],
                weights_M,
                n=count,
                max_tokens=max_tokens,
                temperature=1.0,
                logprobs=0,
                seed=first_seed,  # vLLM's sample i of n has this seed plus i
                return_token_ids=True,
                # Where parameters are mixed the server refuses it: no policy runs as itself.
                preference_attribution=mixing == "logits",
                preference_mixing=mixing,
            )
            return [
                Response(
                    tokens=tuple(choice["token_ids"]),
                    logprob=sum(choice["logprobs"]["token_logprobs"]),
                    text=choice["text"],
                    figures=_figures(choice.get("preference_attribution"), self.spec.member_names),
                )
                for choice in answer["choices"]
            ]

        pieces = [
            (prompt, seed + index * num_responses + begin, min(size, num_responses - begin))
            for index, prompt in enumerate(map(_plain, prompts))
            for begin in range(0, num_responses, size)
        ]
        responses = [
            response for piece in self._concurrently(some, pieces, cost=size) for response in piece
        ]
        starts = range(0, len(responses), num_responses)
        return [responses[start : start + num_responses] for start in starts]

    def score(
        self,
        pairs: Sequence[tuple[PromptTokens, Tokens]],
        weights_M: Sequence[float],
        *,
        mixing: Mixing = "logits",
    ) -> list[float]:
        """Log-probability of each (prompt, response) pair's response, in nats."""

        def some(batch: Sequence[tuple[Tokens, Tokens]]) -> list[float]:
            whole = [prompt + response for prompt, response in batch]
            answer = self._complete(
                whole, weights_M, max_tokens=1, prompt_logprobs=0, preference_mixing=mixing
            )
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            return [
                sum(
                    step[str(token)]["logprob"]
                    for step, token in zip(
                        choice["prompt_logprobs"][len(prompt) :], response, strict=True
                    )
                )
                for (prompt, response), choice in zip(batch, choices, strict=True)
            ]

        size = min(BATCH, self._share)
        plain = [(_plain(prompt), response) for prompt, response in pairs]
        batches = [plain[begin : begin + size] for begin in range(0, len(plain), size)]
        found = self._concurrently(some, batches, cost=size)
        return [score for scores in found for score in scores]

    @property
    def _share(self) -> int:
        """Answers that one request may ask for; the rest is room for other users."""
        return max(1, self._at_once // 4)

    def _concurrently(
        self, function: Callable[[Item], Result], items: Sequence[Item], *, cost: int
    ) -> list[Result]:
        """Maps over items with as many requests in flight as the server takes.

        Args: cost: answers that one request asks for.
        """
        at_once = self._at_once // 2 // cost
        return _concurrently(function, items, num_threads=min(CONCURRENCY, max(1, at_once)))

    def _complete(
        self, prompts: Sequence[Tokens], weights_M: Sequence[float], **body: Any
    ) -> dict[str, Any]:
        names = self.spec.member_names
        weights = dict(zip(names, weights_M, strict=True))
        request = {
            "model": self._mixture["model"],
            "prompt": [list(prompt) for prompt in prompts],
            "preference_weights": weights,
            **body,
        }
        return self._json("POST", "/v1/completions", request)

    def _json(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                answer = self._client.request(method, path, json=body)
            except httpx.HTTPError as error:
                raise RemoteError(
                    f"{self.url}{path} does not answer ({error}); is the server running?"
                ) from None
            is_busy = answer.status_code == httpx.codes.SERVICE_UNAVAILABLE
            wait_s = answer.headers.get("retry-after", "")
            if not (is_busy and wait_s.isdigit() and time.monotonic() + int(wait_s) < until):
                break
            time.sleep(int(wait_s))
        if answer.is_success:
            found: dict[str, Any] = answer.json()
            return found
        raise RemoteError(f"{self.url}{path} answered {answer.status_code}: {answer.text:.300}")


def _plain(prompt: PromptTokens) -> Tokens:
    assert not isinstance(prompt, MemberPrompts), "servers keep their policies' prompts"
    return prompt


def _figures(described: dict[str, Any] | None, members: Sequence[str]) -> Figures | None:
    """The figures of a choice, from its attribution: means over tokens become sums."""
    if described is None or not described["num_tokens"]:
        return None
    count = described["num_tokens"]

    def total(value: float | None) -> float:
        return math.nan if value is None else count * value

    of_members = [described["policies"][name] for name in members]
    return Figures(
        log_partition=math.nan
        if described["log_partition"] is None
        else described["log_partition"],
        entropy=total(described["mean_entropy"]),
        kl_M=tuple(total(each["mean_kl"]) for each in of_members),
        logprob_M=tuple(total(each["mean_logprob"]) for each in of_members),
    )


def _members(mixture: dict[str, Any]) -> list[dict[str, Any]]:
    reference = mixture["reference"]
    return [*mixture["policies"], *([] if reference is None else [reference])]


def _spec(mixture: dict[str, Any]) -> MixtureSpec:
    """The mixture as the server describes it."""

    def policy(entry: dict[str, Any]) -> Policy:
        return Policy(name=entry["name"], model=entry["model"], revision=entry["revision"])

    reference = None if mixture["reference"] is None else policy(mixture["reference"])
    base = mixture.get("base")
    return MixtureSpec(
        policies=tuple(policy(entry) for entry in mixture["policies"]),
        reference=reference,
        weight_space=mixture["weight_space"],
        base=base,
        base_revision=reference.revision if base and reference else None,
        mixing=mixture.get("mixing", "logits"),
    )


def _concurrently(
    function: Callable[[Item], Result], items: Sequence[Item], *, num_threads: int = CONCURRENCY
) -> list[Result]:
    """Maps over items in order, with several requests in flight; the first error is raised."""
    with ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(function, items))
