"""The parameters of each prompt of a call: sampling parameters that carry the resolved weights.

A call has N prompts. An argument that is given once counts for all of them; a list must have one
entry for each. Names resolve to weights as in a request to the server.
"""

from __future__ import annotations

import copy
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from prefmix.mixing.shown_value import MAX_CHARS
from prefmix.mixing.wire import MEASURE_KEY, to_extra_args
from prefmix.server.api.resolve import Preferences, Resolution, resolve
from prefmix.server.http.errors import RequestError

if TYPE_CHECKING:
    from vllm import SamplingParams

    from prefmix.mixing.spec import MixtureSpec
    from prefmix.server.api.attribution import Attribution
    from prefmix.server.api.candidates.wish import Candidates
    from prefmix.weights.store.profiles import ProfileSet

MODEL_NAME = "prefmix"
"""The model's name in messages; no model is chosen by name here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptParameters:
    """One prompt's weights and sampling parameters."""

    resolution: Resolution
    sampling_params: SamplingParams
    """A copy of the caller's, with the weights."""
    measured_as: str | None
    """The key of the prompt's figures in the engine; None if they are not measured."""

    @property
    def weights(self) -> dict[str, float]:
        """The weights by member, in weight order."""
        names = self.resolution.member_names
        return dict(zip(names, self.resolution.weights, strict=True))


def prompt_parameters(
    num_prompts: int,
    *,
    sampling_params: Any,
    default: Callable[[], SamplingParams],
    weights: Any,
    profile: Any,
    mixing: Any,
    attribution: Attribution,
    candidates: Candidates,
    spec: MixtureSpec,
    profiles: ProfileSet,
) -> list[PromptParameters]:
    """Resolves the weights of N prompts and puts them into copies of the sampling parameters.

    Args:
      num_prompts: N.
      sampling_params: vLLM's, a dictionary of their arguments or None; one or N of these.
      default: makes the sampling parameters of a prompt that has none.
      weights: {policy: number} or None; one or N of these.
      profile: a name or None; one or N of these.
      mixing: "logits", "parameters" or None; one or N of these.
      attribution: the call's.
      candidates: the call's.
      spec: the mixture.
      profiles: the profiles in force.
    Raises: RequestError in the server's words.
    """
    given_N = _each(sampling_params, num_prompts, name="sampling_params")
    weights_N = _each(weights, num_prompts, name="weights")
    profile_N = _each(profile, num_prompts, name="profile")
    mixing_N = _each(mixing, num_prompts, name="mixing")
    is_by_prompt = any(map(_is_list, (sampling_params, weights, profile, mixing)))
    own = {id(given): _own_copy(given, default) for given in given_N}
    found = []
    wishes = zip(given_N, weights_N, profile_N, mixing_N, strict=True)
    for index, (given, each, name, way) in enumerate(wishes):
        # vLLM makes a deep copy before it changes anything but plain fields.
        params = copy.copy(own[id(given)])
        if not isinstance(params.extra_args, Mapping | None):
            raise RequestError(
                f"extra_args is {short_repr(params.extra_args)}; expected a dictionary",
                param="sampling_params",
            )
        preferences = Preferences(
            weights=_plain_numbers(each), profile=name, mixing=way, extra_args=params.extra_args
        )
        try:
            resolution = resolve(
                preferences, spec=spec, profiles=profiles, model_names=(MODEL_NAME,)
            )
            attribution.check(resolution.mixing)
            candidates.check(resolution.mixing)
            candidates.prepare(params)
        except RequestError as error:
            message = f"prompt {index}: {error}" if is_by_prompt else str(error)
            raise RequestError(message, param=error.param, reason=error.reason) from None
        key = attribution.next_key() if attribution.is_measured else None
        own_args = to_extra_args(resolution.weights, resolution.mixing)
        params.extra_args = {**(params.extra_args or {}), **own_args}
        params.extra_args.pop(MEASURE_KEY, None)
        if key is not None:
            params.extra_args[MEASURE_KEY] = key
        found.append(
            PromptParameters(resolution=resolution, sampling_params=params, measured_as=key)
        )
    return found


def listed_policy_prompts(policy_prompts: Any, num_prompts: int) -> Sequence[Any]:
    """The prompts of policies' own, {policy: prompt} or None for each of N prompts.

    Raises: RequestError for a list of another length.
    """
    return _each(policy_prompts, num_prompts, name="policy_prompts")


def listed_prompts(prompts: Any) -> Any:
    """The prompts of a call, as vLLM takes them; an iterator becomes a list.

    Raises: RequestError if they are of no kind that vLLM takes.
    """
    found = _listed(prompts)
    if isinstance(found, (str, bytes, Mapping)):
        return found
    for index, each in enumerate(found or ()):
        if not isinstance(each, (str, bytes, Mapping, Sequence, numbers.Integral)):
            _refuse_prompts(f"prompts[{index}]", each)
    if found is None:
        _refuse_prompts("prompts", prompts)
    return found


def listed_conversations(messages: Any) -> Any:
    """The conversation or conversations of a call; an iterator becomes a list.

    Raises: RequestError if it is anything else.
    """
    found = _listed(messages)
    is_list = found is not None and not isinstance(found, (str, bytes, Mapping))
    wrong = None if is_list else ("messages", messages)
    for index, each in enumerate(found if is_list else ()):
        if not isinstance(each, Mapping) and not _is_list(each):
            wrong = wrong or (f"messages[{index}]", each)
    if wrong is not None:
        raise RequestError(
            f"{wrong[0]} is {short_repr(wrong[1])}; expected a conversation, which is a list of "
            '{"role": ..., "content": ...}, or a list of conversations',
            param="messages",
        )
    return found


def _listed(given: Any) -> Any:
    """The value, an iterator as a list; None if it is neither text nor a collection."""
    if isinstance(given, (str, bytes, Mapping, Sequence)):
        return given
    return list(given) if isinstance(given, Iterable) else None


def _refuse_prompts(name: str, given: object) -> NoReturn:
    raise RequestError(
        f"{name} is {short_repr(given)}; expected a string, token ids, one of vLLM's dictionaries "
        "of a prompt, or a list of these",
        param="prompts",
    )


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _each(value: Any, num_prompts: int, *, name: str) -> Sequence[Any]:
    """The value of each prompt. Raises: RequestError if a list has another length."""
    if not _is_list(value):
        return [value] * num_prompts
    if len(value) != num_prompts:
        raise RequestError(
            f"{name} has {len(value)} entries, for {num_prompts} prompts; give one for all of "
            "them, or a list with one for each",
            param=name,
        )
    # Read once: a sequence may make its entries anew at every look.
    return list(value)


def _own_copy(given: object, default: Callable[[], SamplingParams]) -> SamplingParams:
    """A copy of the given sampling parameters, or the default, which may be changed."""
    from vllm import SamplingParams

    if given is None:
        return default()
    if isinstance(given, Mapping):
        try:
            return SamplingParams(**given)
        except TypeError as error:
            raise RequestError(f"sampling_params: {error}", param="sampling_params") from None
    if not isinstance(given, SamplingParams):
        raise RequestError(
            f"sampling_params is {short_repr(given)}; expected vllm.SamplingParams, or a "
            "dictionary of its arguments, or a list of these",
            param="sampling_params",
        )
    return given.clone()


def _plain_numbers(weights: object) -> object:
    """Numbers of other libraries, such as numpy.float32, as Python's."""
    if not isinstance(weights, Mapping):
        return weights
    return {
        name: float(value)
        if isinstance(value, numbers.Real) and not isinstance(value, (bool, int, float))
        else value
        for name, value in weights.items()
    }


def short_repr(value: object) -> str:
    """A caller's value as Python spells it, shortened to fit into a message."""
    if isinstance(value, (dict, list, tuple)) and len(value) > 10:
        return f"a {type(value).__name__} of {len(value)} items"
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return f"a very long {type(value).__name__}"
    return text if len(text) <= MAX_CHARS else text[:MAX_CHARS] + "..."
