"""Resolution of a request's weights and way to mix: the only place where names of profiles and
policies become numbers.

A request may choose its weights in five ways, at most one of them at a time:
  preference_weights   {"helpful": 3, "harmless": 1}
  preference_profile   "cautious"
  model                "prefmix@cautious"
  vllm_xargs           {"prefmix_weights": [0.75, 0.25]}, vLLM's own pass-through field
  guidance_scale       1.5, the policy's weight beside a reference's
A request that chooses none gets the default profile.

It chooses its way to mix by `preference_mixing`, or {"prefmix_mixing": ...} in vllm_xargs; else its
profile does, or the server's default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prefmix.mixing.name_list import listed
from prefmix.mixing.shown_value import shown
from prefmix.mixing.simplex import (
    MAX_ABS_WEIGHT,
    WeightsError,
    check_weights,
    weights_from_preferences,
)
from prefmix.mixing.spec import MixtureSpec
from prefmix.mixing.ways_to_mix import Mixing, MixingError, check_mixing
from prefmix.mixing.wire import MIXING_KEY, WEIGHTS_KEY, from_extra_args, mixing_of
from prefmix.server.api.prompts.own_prompt import guided_members
from prefmix.server.http.errors import RequestError, UnknownModelError
from prefmix.weights.store.profiles import CUSTOM_PROFILE, ProfileSet
from prefmix.weights.store.sleep import said_dormant


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolution:
    """The weights one request keeps from admission to its last token."""

    weights: tuple[float, ...]
    """One weight per member; they sum to 1."""
    profile: str
    """The profile that the weights came from, or `custom`."""
    version: int
    """Version of the profile set that was in force."""
    model: str
    """The served model name, without any @PROFILE."""
    member_names: tuple[str, ...]
    """The members, in weight order."""
    mixing: Mixing
    """The way in which the policies are mixed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preferences:
    """A request's fields that choose its weights, unchecked."""

    model: str | None = None
    weights: object = None
    """`preference_weights`; None if absent."""
    profile: object = None
    """`preference_profile`; None if absent."""
    mixing: object = None
    """`preference_mixing`; None if absent."""
    guidance_scale: object = None
    """`guidance_scale`; None if absent."""
    extra_args: Mapping[str, object] | None = None
    """`vllm_xargs`; only the entries under `wire.WEIGHTS_KEY` and `wire.MIXING_KEY` matter here."""


def resolve(
    preferences: Preferences,
    *,
    spec: MixtureSpec,
    profiles: ProfileSet,
    model_names: tuple[str, ...],
) -> Resolution:
    """Checks a request's fields and computes the weights it is served with.

    Args:
      preferences: the request's fields.
      spec: the mixture served.
      profiles: the profile set in force; the caller reads it once per request.
      model_names: names the mixture is served under; the first is the default.
    Raises: RequestError (400) or UnknownModelError (404); the message lists what exists.
    """
    model, model_profile = split_model(preferences.model, profiles, model_names=model_names)
    raw_weights = from_extra_args(preferences.extra_args)
    _at_most_one(
        {
            "preference_weights": preferences.weights,
            "preference_profile": preferences.profile,
            "model": model_profile,
            f"vllm_xargs.{WEIGHTS_KEY}": raw_weights,
            "guidance_scale": preferences.guidance_scale,
        },
        model=preferences.model,
    )

    profile = CUSTOM_PROFILE
    if preferences.weights is not None:
        weights_M = _custom_weights(preferences.weights, spec)
    elif raw_weights is not None:
        weights_M = _raw_weights(raw_weights, spec)
    elif preferences.guidance_scale is not None:
        weights_M = _guidance_weights(preferences.guidance_scale, spec)
    else:
        profile = model_profile or _known_profile(preferences.profile, profiles)
        weights_M = profiles.profiles[profile]
    mixing = _mixing(preferences, spec, profiles, profile)
    policy = profiles.without_logits(weights_M)
    if mixing == "logits" and policy is not None:
        raise RequestError(
            f"policy {policy!r} has weight, but it was added without a KV cache and has no logits "
            'to mix; send "preference_mixing": "parameters", or leave it without weight',
            param="preference_mixing",
        )
    return Resolution(
        weights=weights_M,
        profile=profile,
        version=profiles.version,
        model=model,
        member_names=spec.member_names,
        mixing=mixing,
    )


def _mixing(
    preferences: Preferences, spec: MixtureSpec, profiles: ProfileSet, profile: str
) -> Mixing:
    given: dict[str, object] = {
        "preference_mixing": preferences.mixing,
        f"vllm_xargs.{MIXING_KEY}": mixing_of(preferences.extra_args),
    }
    named = {field: value for field, value in given.items() if value is not None}
    if len(named) > 1:
        raise RequestError(
            f"{' and '.join(named)} were both given; send one of them",
            param="preference_mixing",
        )
    if not named and profile in profiles.mixings:
        named = {f"the mixing of profile {profile!r}": profiles.mixings[profile]}
    for field, value in named.items():
        try:
            return check_mixing(value, has_base=spec.base is not None)
        except MixingError as error:
            param = field.partition(".")[0] if field in given else _naming(preferences, profile)
            raise RequestError(f"{field}: {error}", param=param) from None
    return spec.mixing


def _naming(preferences: Preferences, profile: str) -> str | None:
    """The field by which a request has named its profile; None if it has the default."""
    if preferences.profile is not None:
        return "preference_profile"
    return "model" if (preferences.model or "").endswith(f"@{profile}") else None


def split_model(
    model: str | None, profiles: ProfileSet, *, model_names: tuple[str, ...]
) -> tuple[str, str | None]:
    """Splits NAME or NAME@PROFILE into the served name and the profile, or None.

    Raises: UnknownModelError.
    """
    if not model:
        return model_names[0], None
    if model in model_names:
        return model, None
    name, _, profile = model.rpartition("@")
    if name in model_names and not profile:
        raise UnknownModelError(
            f"The model {shown(model)} has no profile behind the '@'; write {name} for the default "
            f"profile, or {name}@PROFILE with PROFILE one of: {listed(profiles.profiles)}",
            param="model",
            reason="unknown_profile",
        )
    if name in model_names and profile in profiles.profiles:
        return name, profile
    if name in model_names and profile in profiles.dormant:
        raise UnknownModelError(
            f"The model {shown(model)} does not exist at the moment: its profile {shown(profile)} "
            f"{said_dormant(profiles, profile)}; those that can be named are: "
            f"{listed(profiles.profiles)}",
            param="model",
            reason="unknown_profile",
        )
    if name in model_names:
        raise UnknownModelError(
            f"The model {shown(model)} does not exist: {name} has no profile "
            f"{shown(profile)}; its profiles are: {listed(profiles.profiles)}",
            param="model",
            reason="unknown_profile",
        )
    raise UnknownModelError(
        f"The model {shown(model)} does not exist; served here: {listed(model_names)}, "
        f"or {model_names[0]}@PROFILE with PROFILE one of: {listed(profiles.profiles)}",
        param="model",
    )


def _at_most_one(ways: Mapping[str, object], *, model: str | None) -> None:
    fields = [field for field, value in ways.items() if value is not None]
    if len(fields) > 1:
        said = [f"model {model!r}" if field == "model" else field for field in fields]
        raise RequestError(
            f"{' and '.join(said)} were both given; send one of them, as each alone decides "
            "the weights",
            param=next(field for field in fields if field != "model").partition(".")[0],
            reason="ambiguous",
        )


def _custom_weights(weights: object, spec: MixtureSpec) -> tuple[float, ...]:
    try:
        return weights_from_preferences(weights, spec)
    except WeightsError as error:
        raise RequestError(
            f"preference_weights: {error}", param="preference_weights", reason=error.reason
        ) from None


def _raw_weights(weights: object, spec: MixtureSpec) -> tuple[float, ...]:
    try:
        return check_weights(weights, num_members=spec.num_members, weight_space=spec.weight_space)
    except WeightsError as error:
        raise RequestError(
            f"vllm_xargs.{WEIGHTS_KEY}: {error}", param="vllm_xargs", reason=error.reason
        ) from None


def _guidance_weights(scale: object, spec: MixtureSpec) -> tuple[float, ...]:
    """log p = reference + s (policy - reference), up to a constant of the row."""
    policy, reference = guided_members("guidance_scale", spec)
    is_number = isinstance(scale, int | float) and not isinstance(scale, bool)
    if not is_number or not abs(scale) <= MAX_ABS_WEIGHT:  # type: ignore[arg-type]
        raise RequestError(
            f"guidance_scale is {shown(scale)}; expected a number up to {MAX_ABS_WEIGHT:g}",
            param="guidance_scale",
            reason="not_a_number",
        )
    s = float(scale)  # type: ignore[arg-type]
    if spec.weight_space == "simplex" and not 0 <= s <= 1:
        raise RequestError(
            f"guidance_scale is {s:g}, but weights of this server are on the simplex, where it is "
            "from 0 to 1; have it served with --weight-space affine",
            param="guidance_scale",
            reason="negative",
        )
    return weights_from_preferences({policy: s, reference: 1.0 - s}, spec)


def _known_profile(profile: object, profiles: ProfileSet) -> str:
    if profile is None:
        return profiles.default
    if isinstance(profile, str) and profile in profiles.profiles:
        return profile
    if isinstance(profile, str) and profile in profiles.dormant:
        wrong = said_dormant(profiles, profile)
    else:
        wrong = "does not exist" if isinstance(profile, str) else "is not a string"
    raise RequestError(
        f"preference_profile {shown(profile)} {wrong}; "
        f"the profiles are: {listed(profiles.profiles)}",
        param="preference_profile",
        reason="unknown_profile",
    )
