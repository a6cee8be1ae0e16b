"""Request bodies: vLLM's own, plus the fields that choose the weights and the attribution.

Pydantic takes any JSON for these fields. `resolve` and `attribution` check them, as they know the
policies and profiles; the OpenAPI page shows the fields' real types and an example.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self

import vllm.envs as vllm_envs
from pydantic import (
    BaseModel,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.serve.tokenize.protocol import (
    DetokenizeRequest,
    TokenizeChatRequest,
    TokenizeCompletionRequest,
)
from vllm.exceptions import VLLMClientError
from vllm.renderers import TokenizeParams
from vllm.sampling_params import SamplingParams

from prefmix.mixing.shown_value import shown
from prefmix.server.api.attribution import FIELD as ATTRIBUTION_FIELD
from prefmix.server.api.bounded_schema import bounded
from prefmix.server.api.candidates.wish import FIELD as CANDIDATES_FIELD
from prefmix.server.api.field_schemas import (
    ATTRIBUTION_SCHEMA,
    CANDIDATES_SCHEMA,
    GUIDANCE_SCHEMA,
    MIXING_SCHEMA,
    NEGATIVE_SCHEMA,
    PROFILE_SCHEMA,
    PROMPTS_SCHEMA,
    WEIGHTS_SCHEMA,
)
from prefmix.server.api.prompts.request_prompts import RequestPrompts
from prefmix.server.api.resolve import Preferences
from prefmix.server.http.errors import RequestError
from prefmix.server.http.validation_errors import describe_validation

PromptKind = Literal["chat", "completion", "response"]

StartPrompt = Callable[[SamplingParams], None]
"""Prepares the sampling parameters of one prompt, which then enters the engine."""

MAX_TOKEN_ID = 2**32 - 1
"""Largest token id that tokenizers hold."""


@dataclasses.dataclass(frozen=True)
class _CutBeforeTokens(TokenizeParams):
    """vLLM's settings, which also cut the text of a prompt that is to be truncated.

    Without `truncation_side` vLLM would make four MiB of text into tokens, for seconds, while all
    others wait for the tokenizer, and then keep a few.
    """

    def apply_pre_tokenization(self, tokenizer: Any, prompt: Any) -> Any:
        """Leaves the text from which the kept tokens come; then vLLM's own checks."""
        if None not in (tokenizer, self.truncate_prompt_tokens, self.max_total_tokens):
            assert self.max_total_tokens is not None
            most = max(self.max_total_tokens * tokenizer.max_chars_per_token, 1)
            side = self.truncation_side or tokenizer.truncation_side
            text = prompt["prompt"]
            prompt["prompt"] = text[-most:] if side == "left" else text[:most]
        return super().apply_pre_tokenization(tokenizer, prompt)


class PreferenceFields(BaseModel):
    """The fields that this server adds to a body. An admitted request is bound to its body."""

    prompt_kind: ClassVar[PromptKind]
    """The form in which a body gives its prompt."""

    preference_weights: Annotated[Any, WithJsonSchema(WEIGHTS_SCHEMA)] = Field(
        default=None,
        description=(
            "Weights of the policies for this request, as {policy: number}. On the simplex the "
            "numbers are non-negative ratios, normalised here; unnamed policies get 0. GET "
            "/v1/mixture lists the policies. Not together with preference_profile."
        ),
        examples=[{"helpful": 3, "harmless": 1}],
    )
    preference_profile: Annotated[Any, WithJsonSchema(PROFILE_SCHEMA)] = Field(
        default=None,
        description=(
            "Name of a stored profile whose weights to use; GET /v1/mixture lists them. "
            "NAME@PROFILE in `model` does the same. Default: the default profile."
        ),
        examples=["default"],
    )
    preference_mixing: Annotated[Any, WithJsonSchema(MIXING_SCHEMA)] = Field(
        default=None,
        description=(
            "logits mixes the policies' predictions of each token. parameters lets one model "
            "predict it, the mean of the policies' parameters by the same weights, at the cost of "
            "one policy; for adapters of one base. Default: the profile's, else the server's."
        ),
        examples=["logits"],
    )
    preference_attribution: Annotated[Any, WithJsonSchema(ATTRIBUTION_SCHEMA)] = Field(
        default=None,
        description=(
            "true adds to each choice (when streaming, to its last chunk) which policy carried the "
            'answer: mean log-probability, KL and agreement by policy; "tokens" adds every token.'
        ),
        examples=[True],
    )
    preference_candidates: Annotated[Any, WithJsonSchema(CANDIDATES_SCHEMA)] = Field(
        default=None,
        description=(
            "Draws so many answers and picks one by the product of its tokens' normalisers, which "
            "brings its distribution near to that of the product of the policies' whole sequences. "
            "Each choice says how many candidates it counts as. Not with stream."
        ),
        examples=[8],
    )
    preference_prompts: Annotated[Any, WithJsonSchema(PROMPTS_SCHEMA)] = Field(
        default=None,
        description=(
            "Prompts of the policies' own, where the server allows it (GET /v1/mixture: "
            "request_prompts). On chat a text is the policy's system text, which goes before the "
            'system message of `messages`, and {"messages": [...]} its whole conversation. On '
            "completions a text or a list of token ids is the policy's whole prompt. Policies that "
            "are not named keep `messages` or `prompt`."
        ),
        examples=[{"helpful": "You answer at length."}],
    )
    negative_prompt: Annotated[Any, WithJsonSchema(NEGATIVE_SCHEMA)] = Field(
        default=None,
        description=(
            "The reference's prompt on a server of one policy and a reference: the same as "
            "preference_prompts with the reference's name."
        ),
    )
    guidance_scale: Annotated[Any, WithJsonSchema(GUIDANCE_SCHEMA)] = Field(
        default=None,
        description=(
            "The weight s of the policy on a server of one policy and a reference, which takes "
            "1 - s: log p = reference + s (policy - reference). Not together with "
            "preference_weights or a profile."
        ),
        examples=[1.5],
    )
    _start_prompt: StartPrompt | None = PrivateAttr(default=None)
    _own_prompts: RequestPrompts | None = PrivateAttr(default=None)

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_wrong_types(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            # vLLM's checks run before pydantic's and take the types of some fields for granted.
            raise ValueError(f"a field of the body is of a wrong type: {error}") from None
        except VLLMClientError as error:  # no ValueError, so pydantic would let it pass
            param = getattr(error, "parameter", None)
            cause = error.__cause__  # vLLM only says that a structural tag is invalid
            reason = cause if isinstance(cause, VLLMClientError) else error
            raise RequestError(str(reason.args[0]), param=param) from None

    def preferences(self) -> Preferences:
        """The fields that choose this request's weights.

        Raises: RequestError if the request asks for beam search.
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
            mixing=self.preference_mixing,
            guidance_scale=self.guidance_scale,
            extra_args=getattr(self, "vllm_xargs", None),
        )

    @property
    def num_samples(self) -> int:
        """Number of answers to each prompt."""
        return max(getattr(self, "n", None) or 1, 1)

    @property
    def num_prompts(self) -> int:
        """Number of prompts of this request."""
        return 1

    @property
    def asks_for_prompts(self) -> bool:
        """True if the body gives a policy a prompt of its own."""
        return self.preference_prompts is not None or self.negative_prompt is not None

    @property
    def own_prompts(self) -> RequestPrompts | None:
        """The prompts that members read; None if all read the body's."""
        return self._own_prompts

    @property
    def background_id(self) -> str | None:
        """The id under which the answer goes on after its HTTP request; None if it does not."""
        return None

    def checked_messages(self, messages: list[Any], where: str, param: str) -> list[Any]:
        """Messages of a policy's own, which only conversations have."""
        raise NotImplementedError

    def show_token_ids(self) -> bool:
        """Makes vLLM's answer list its token ids; returns whether the client has asked for them."""
        is_asked = bool(getattr(self, "return_token_ids", False))
        self.return_token_ids = True
        return is_asked

    def bind(
        self, *, model: str, start_prompt: StartPrompt, own_prompts: RequestPrompts | None = None
    ) -> None:
        """Binds the body to an admitted request.

        Args:
          model: the model name that vLLM knows, without any @PROFILE.
          start_prompt: called with the sampling parameters of each prompt.
          own_prompts: what each member reads; None if all read this body's prompt.
        """
        self.model = model
        self._start_prompt = start_prompt
        self._own_prompts = own_prompts

    def build_tok_params(self, model_config: Any) -> TokenizeParams:
        """vLLM's settings for making the prompt into tokens, with a limit for truncated ones."""
        params: TokenizeParams = super().build_tok_params(model_config)  # type: ignore[misc]
        values = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
        return _CutBeforeTokens(**values)

    def to_sampling_params(self, *args: Any, **kwargs: Any) -> SamplingParams:
        """vLLM's sampling parameters, with the request's weights. vLLM calls this once a prompt."""
        assert self._start_prompt is not None, "bind() comes before to_sampling_params()"
        params: SamplingParams = super().to_sampling_params(*args, **kwargs)  # type: ignore[misc]
        self._start_prompt(params)
        return params


@bounded
class MixtureCompletionRequest(PreferenceFields, CompletionRequest):
    """POST /v1/completions"""

    prompt_kind: ClassVar[PromptKind] = "completion"

    @property
    def num_prompts(self) -> int:
        """Number of prompts: a list is several prompts, unless it is the token ids of one."""
        prompt = self.prompt
        if not isinstance(prompt, list) or not prompt or isinstance(prompt[0], int):
            return 1
        return len(prompt)


@bounded
class MixtureChatCompletionRequest(PreferenceFields, ChatCompletionRequest):
    """POST /v1/chat/completions"""

    prompt_kind: ClassVar[PromptKind] = "chat"

    def checked_messages(self, messages: list[Any], where: str, param: str) -> list[Any]:
        """A conversation of a policy's own, validated as the body's.

        Args:
          where: its policy's place in the body.
          param: the field.
        Raises: RequestError.
        """
        try:
            return list(type(self).model_validate({"messages": messages}).messages)
        except ValidationError as error:
            message, _ = describe_validation(error.errors(include_url=False))
            raise RequestError(f"{where}: {message}", param=param) from None


@bounded
class MixtureResponsesRequest(PreferenceFields, ResponsesRequest):
    """POST /v1/responses"""

    prompt_kind: ClassVar[PromptKind] = "response"

    def preferences(self) -> Preferences:
        """The fields that choose the weights. Raises: RequestError, also for what is not served."""
        for field in (ATTRIBUTION_FIELD, CANDIDATES_FIELD):
            if getattr(self, field):
                raise RequestError(
                    f"{field} is not served by the Responses API; use /v1/chat/completions or "
                    "/v1/completions",
                    param=field,
                )
        if self.previous_response_id is not None and not vllm_envs.VLLM_ENABLE_RESPONSES_API_STORE:
            raise RequestError(
                f"previous_response_id is {shown(self.previous_response_id)}, but this server "
                "keeps no responses; send the conversation so far as a list in `input`, or have "
                "the server started with VLLM_ENABLE_RESPONSES_API_STORE=1 in its environment",
                param="previous_response_id",
            )
        return super().preferences()

    @property
    def background_id(self) -> str | None:
        """The response's id if it was asked for in the background."""
        return self.request_id if self.background else None


class _WithinContext:
    """A prompt to make into tokens that is no longer than a prompt to answer.

    vLLM has no limit here: it would make four MiB of text into tokens, for a minute, while others
    wait for the tokenizer.
    """

    def build_tok_params(self, model_config: Any) -> TokenizeParams:
        """vLLM's settings, with the limit that the routes for text have."""
        params: TokenizeParams = super().build_tok_params(model_config)  # type: ignore[misc]
        return dataclasses.replace(params, max_total_tokens=model_config.max_model_len)


@bounded
class BoundedTokenizeCompletionRequest(_WithinContext, TokenizeCompletionRequest):
    """POST /tokenize, of a prompt"""


@bounded
class BoundedTokenizeChatRequest(_WithinContext, TokenizeChatRequest):
    """POST /tokenize, of a conversation"""


@bounded
class BoundedDetokenizeRequest(DetokenizeRequest):
    """POST /detokenize"""

    tokens: list[Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]]
