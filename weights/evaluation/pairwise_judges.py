"""Judges that compare two answers to a prompt: functions, and models behind an OpenAI-compatible
server.

A judge is asked twice, with the answers in both orders, because models prefer a place. What an
answer earns is the mean of both verdicts: 1 if it is better than the other, 0 if it is worse.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from prefmix.mixing.shown_value import shown
from prefmix.weights.engines.errors import EngineError
from prefmix.weights.engines.prompts import Prompt
from prefmix.weights.engines.proxies import may_use_proxy

Judge = Callable[[Sequence[Prompt], Sequence[str], Sequence[str]], Sequence[float | None]]
"""(prompts, answers, other answers) -> 1 where the answer is better, 0 where the other is, 0.5 for
a tie, None where the judge cannot tell."""

CONCURRENCY = 8
"""Requests to a server in flight."""

_QUESTION = """\
Compare two answers to the same prompt. Criterion: {criterion}.

Prompt:
{prompt}

Answer A:
{first}

Answer B:
{second}

Which answer is better by this criterion alone? Reply with A, B or tie, and nothing else."""

_VERDICTS = {"a": 1.0, "b": 0.0, "tie": 0.5}

_ONLY = re.compile(
    r"\W*(?:(?:the )?(?:better |best )?(?:answer|verdict|winner)\W*(?:is\W*)?)?(a|b|tie)\W*", re.I
)
_IS_BETTER = re.compile(r"\b([AB]) (?:wins|is (?:(?!not?\b)\w+ ){0,3}(?:better|best|preferable))\b")
# The article a is no verdict, neither in the middle of a sentence nor at its beginning.
_NAMED = re.compile(r"\b(A(?!\s+(?!(?:is|or|and|vs|than|over)\b)[a-z])|B|[Tt]ie|TIE)\b")

_TRIES = 5
_TRY_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
"""Statuses of a server that may answer the same request a little later."""

_LONGEST_WAIT_S = 60.0


def in_both_orders(
    judge: Judge, prompts: Sequence[Prompt], answers: Sequence[str], others: Sequence[str]
) -> list[float | None]:
    """Asks a judge for every pair, in both orders; None where it cannot tell in one of them."""
    there = judge([*prompts, *prompts], [*answers, *others], [*others, *answers])
    count = len(prompts)
    return [
        None if one is None or other is None else (one + 1 - other) / 2
        for one, other in zip(there[:count], there[count:], strict=True)
    ]


class ChatJudge:
    """A chat model that is asked which of two answers is better by a criterion."""

    def __init__(
        self,
        url: str,
        *,
        model: str,
        criterion: str,
        api_key: str | None = None,
        timeout_s: float = 120.0,
    ) -> None:
        """Args:
        url: the base of an OpenAI-compatible API, such as http://127.0.0.1:8000/v1.
        model: the model to ask there.
        criterion: a word or a sentence for people.
        api_key: sent as a bearer token; never through a proxy that could read it.
        timeout_s: limit of one request.
        """
        self._url, self._model, self._criterion = url.rstrip("/"), model, criterion
        self.unread: str | None = None
        """The model's words that were last taken for no verdict; None if all were verdicts."""
        self._client = httpx.Client(
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=timeout_s,
            follow_redirects=False,
            transport=None if may_use_proxy(url) else httpx.HTTPTransport(),
        )

    def __call__(
        self, prompts: Sequence[Prompt], answers: Sequence[str], others: Sequence[str]
    ) -> list[float | None]:
        """Judges every pair. Raises: EngineError if the server does not answer."""
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            return list(pool.map(self._one, prompts, answers, others))

    def _one(self, prompt: Prompt, answer: str, other: str) -> float | None:
        question = _QUESTION.format(
            criterion=self._criterion, prompt=written(prompt), first=answer, second=other
        )
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": 8,
        }
        try:
            found = self._asked(body)
            if found.is_error:
                raise ValueError(f"{found.status_code}: {found.text}")
            said = found.json()["choices"][0]["message"]["content"]
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise EngineError(
                f"the judge at {self._url} does not answer as a chat model "
                f"({' '.join(str(error).split()):.200}); check the address, the model's name and "
                "PREFMIX_JUDGE_API_KEY"
            ) from None
        verdict = verdict_of(said)
        if verdict is None:
            self.unread = shown(said)
        return verdict

    def _asked(self, body: dict[str, Any]) -> httpx.Response:
        """The answer, perhaps an error's, after some tries; one of thousands may well fail once."""
        for wait_s in (*(2.0**number for number in range(_TRIES - 1)), None):
            try:
                found = self._client.post(f"{self._url}/chat/completions", json=body)
            except httpx.TransportError:
                if wait_s is None:
                    raise
            else:
                if wait_s is None or found.status_code not in _TRY_AGAIN:
                    return found
                asked = found.headers.get("retry-after", "")
                wait_s = max(wait_s, float(asked) if asked.isdecimal() else 0.0)
            time.sleep(min(wait_s, _LONGEST_WAIT_S))
        raise AssertionError("the last try returns or raises")


def verdict_of(said: object) -> float | None:
    """The verdict in a model's words; None if they name none, or more than one."""
    if not isinstance(said, str):
        return None
    found = _ONLY.fullmatch(said) or _IS_BETTER.search(said)
    named = {word.lower() for word in ([found[1]] if found else _NAMED.findall(said))}
    return _VERDICTS[named.pop()] if len(named) == 1 else None


def written(prompt: Prompt) -> str:
    """The prompt as a judge reads it."""
    if prompt.text is not None:
        return prompt.text
    return "\n".join(f"{each['role']}: {each['content']}" for each in prompt.messages or ())
