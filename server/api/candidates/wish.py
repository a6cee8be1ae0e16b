"""The candidates that a request asks for, checked.

What is mixed are the policies' whole distributions, each at temperature 1. A sampling parameter
that changes the distribution of a token makes the candidates those of another mixture, whose
normalisers nobody has measured, so all of these are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefmix.mixing.shown_value import shown
from prefmix.mixing.ways_to_mix import Mixing
from prefmix.server.http.errors import RequestError

if TYPE_CHECKING:
    from vllm import SamplingParams

FIELD = "preference_candidates"

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "temperature": (1,),
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_tokens": (0,),
    "logit_bias": (None, {}),
    "allowed_token_ids": (None, []),
    "bad_words": (None, []),
    "structured_outputs": (None,),
    "thinking_token_budget": (None,),
    "watermarking": (None, False),
    "trace_decode_token_ids": (None,),
}
"""The values with which each of vLLM's sampling parameters leaves a token's distribution as it is;
the first is the one to send."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateLimits:
    """Limits on candidates; None sets no limit."""

    most: int | None = None
    """Most candidates for an answer; 0 serves none."""
    max_tokens: int | None = None
    """Longest answer that is picked from candidates, in tokens."""
    refusal: str = "this server draws none"
    """The reason why none are served."""


class Candidates:
    """The candidates that a request asks for."""

    def __init__(self, wish: object, limits: CandidateLimits) -> None:
        """Args:
        wish: the body's field, unchecked.
        limits: of the server.
        Raises: RequestError unless the wish is absent or a number within the limits.
        """
        is_number = isinstance(wish, int) and not isinstance(wish, bool)
        if wish is not None and not (is_number and wish >= 1):  # type: ignore[operator]
            raise RequestError(
                f"{FIELD} is {shown(wish)}; expected a number of candidates, 1 or more",
                param=FIELD,
            )
        self.is_wanted = wish is not None
        self.number = int(wish) if is_number else 1  # type: ignore[call-overload]
        self._limits = limits
        if not self.is_wanted or limits.most is None:
            return
        if limits.most == 0:
            raise RequestError(f"{FIELD} is not served: {limits.refusal}", param=FIELD)
        if self.number > limits.most:
            raise RequestError(
                f"{FIELD} is {shown(wish)}; this server draws at most {limits.most} for an "
                "answer (max_candidates)",
                param=FIELD,
            )

    def check(self, mixing: Mixing, *, stream: bool = False, echo: bool = False) -> None:
        """Raises RequestError if an answer that is mixed and sent so cannot be picked."""
        if not self.is_wanted:
            return
        if mixing == "parameters":
            raise RequestError(
                f"{FIELD} needs the policies' own predictions, which are not made where parameters "
                'are mixed; ask with preference_mixing "logits"',
                param=FIELD,
            )
        for field, is_on in (("stream", stream), ("echo", echo)):
            if is_on:
                raise RequestError(
                    f"{field} is true, and an answer is picked from its candidates only once they "
                    f"are complete; leave out {field} or {FIELD}",
                    param=field,
                )

    def prepare(self, params: SamplingParams) -> None:
        """Makes the sampling parameters of one prompt draw the candidates of all its answers.

        Raises: RequestError if they change the distribution of a token, or allow too long answers.
        """
        if not self.is_wanted:
            return
        for field, neutral in NEUTRAL.items():
            value = getattr(params, field)
            if not any(value == each for each in neutral):
                # vLLM makes this one of several fields, whose names the request has.
                is_grammar = field == "structured_outputs"
                given = (
                    "a grammar is asked for, by response_format, structured_outputs or tools"
                    if is_grammar
                    else f"{field} is {shown(value)}, from the request or as the model's default"
                )
                remedy = "leave it out" if neutral[0] is None else f"send {field} {neutral[0]}"
                raise RequestError(
                    f"{given}, and {FIELD} needs the policies' whole distributions, whose "
                    f"normalisers it is about; {remedy}",
                    param=field,
                )
        longest = self._limits.max_tokens
        if longest is not None and (params.max_tokens is None or params.max_tokens > longest):
            raise RequestError(
                f"max_tokens is {params.max_tokens}, from the request or as the rest of the "
                f"context; an answer picked from candidates has at most {longest} tokens here "
                "(max_candidate_tokens), as the longer they are the less alike they weigh",
                param="max_tokens",
            )
        params.n *= self.number
