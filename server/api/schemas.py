"""Request bodies: vLLM's own, plus the two fields that choose the weights.

The fields are declared as any JSON here and checked in `resolve`, which knows the policies and
profiles; the OpenAPI page shows their real shape and an example.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple, Self

from pydantic import (
    BaseModel,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    WithJsonSchema,
    model_validator,
)
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.sampling_params import SamplingParams

from prefmix.mixing.wire import MEASURE_KEY, to_extra_args
from prefmix.server.api.attribution import FIELD as ATTRIBUTION
from prefmix.server.api.attribution import Attribution
from prefmix.server.api.resolve import Preferences, Resolution
from prefmix.server.http.errors import RequestError
from prefmix.server.traffic.admission_control import Reservation

_WEIGHTS_SCHEMA = {
    "anyOf": [
        {"type": "object", "additionalProperties": {"type": "number"}, "minProperties": 1},
        {"type": "null"},
    ],
    "title": "Preference Weights",
}
_ATTRIBUTION_SCHEMA = {
    "anyOf": [{"type": "boolean"}, {"const": "tokens"}, {"type": "null"}],
    "title": "Preference Attribution",
}
_PROFILE_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "null"}], "title": "Preference Profile"}


class Bound(NamedTuple):
    """What a request has been given."""

    resolution: Resolution
    attribution: Attribution
    reservation: Reservation


class PreferenceFields(BaseModel):
    """The fields that choose a request's weights, and the weights once chosen."""

    preference_weights: Annotated[Any, WithJsonSchema(_WEIGHTS_SCHEMA)] = Field(
        default=None,
        description=(
            "Weights of the policies for this request, as {policy: number}. On the simplex the "
            "numbers are non-negative ratios, normalised here; unnamed policies get 0. GET "
            "/v1/mixture lists the policies. Not together with preference_profile."
        ),
        examples=[{"helpful": 3, "harmless": 1}],
    )
    preference_profile: Annotated[Any, WithJsonSchema(_PROFILE_SCHEMA)] = Field(
        default=None,
        description=(
            "Name of a stored profile whose weights to use; GET /v1/mixture lists them. "
            "NAME@PROFILE in `model` does the same. Default: the default profile."
        ),
        examples=["default"],
    )
    preference_attribution: Annotated[Any, WithJsonSchema(_ATTRIBUTION_SCHEMA)] = Field(
        default=None,
        description=(
            "true adds to each choice (when streaming, to its last chunk) which policy carried the "
            'answer: mean log-probability, KL and agreement by policy; "tokens" adds every token.'
        ),
        examples=[True],
    )
    _bound: Bound | None = PrivateAttr(default=None)

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_wrong_types(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            # vLLM's checks that run before pydantic's take the types of some fields for granted.
            raise ValueError(f"a field of the body is of a wrong type: {error}") from None

    def preferences(self) -> Preferences:
        """What this request says about its weights.

        Raises: RequestError if it asks for beam search.
        """
        if getattr(self, "use_beam_search", False):
            raise RequestError(
                "use_beam_search is true; beam search cannot carry a request's weights, so it is "
                "not served here: leave it out and sample instead (n gives several answers)",
                param="use_beam_search",
            )
        return Preferences(
            model=getattr(self, "model", None),
            weights=self.preference_weights,
            profile=self.preference_profile,
            extra_args=getattr(self, "vllm_xargs", None),
        )

    @property
    def num_samples(self) -> int:
        """How many answers each prompt gets."""
        return max(getattr(self, "n", None) or 1, 1)

    @property
    def num_prompts(self) -> int:
        """How many prompts this request has."""
        return 1

    def bind(
        self, resolution: Resolution, attribution: Attribution, reservation: Reservation
    ) -> None:
        """Gives the request the weights and the place it keeps, and the model name vLLM knows."""
        self._bound = Bound(resolution, attribution, reservation)
        self.model = resolution.model

    def to_sampling_params(self, *args: Any, **kwargs: Any) -> SamplingParams:
        """vLLM's sampling parameters with the weights under `wire.WEIGHTS_KEY`."""
        assert self._bound is not None, "bind() comes before to_sampling_params()"
        resolution, attribution, reservation = self._bound
        reservation.hand_over(self.num_samples)  # vLLM adds each prompt after asking for these
        params = super().to_sampling_params(*args, **kwargs)  # type: ignore[misc]
        extra_args = {**(params.extra_args or {}), **to_extra_args(resolution.weights)}
        extra_args.pop(MEASURE_KEY, None)  # a name under which others' figures could be found
        if attribution.is_wanted:
            extra_args[MEASURE_KEY] = attribution.next_key()
        params.extra_args = extra_args
        return params


class MixtureCompletionRequest(PreferenceFields, CompletionRequest):
    """POST /v1/completions"""

    @property
    def num_prompts(self) -> int:
        """A list holds several prompts, unless it holds the tokens of one."""
        prompt = self.prompt
        if not isinstance(prompt, list) or not prompt or isinstance(prompt[0], int):
            return 1
        return len(prompt)


class MixtureChatCompletionRequest(PreferenceFields, ChatCompletionRequest):
    """POST /v1/chat/completions"""


class MixtureResponsesRequest(PreferenceFields, ResponsesRequest):
    """POST /v1/responses"""

    def preferences(self) -> Preferences:
        """Refuses what this API's answers have no place for, too."""
        if self.preference_attribution:
            raise RequestError(
                f"{ATTRIBUTION} is not served by the Responses API; use /v1/chat/completions or "
                "/v1/completions",
                param=ATTRIBUTION,
            )
        return super().preferences()
