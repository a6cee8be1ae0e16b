"""The routes that describe what is served: `GET /v1/models`, one of them, and `GET /v1/mixture`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from vllm.entrypoints.openai.models.serving import OpenAIServingModels

from prefmix.mixing.spec import Policy
from prefmix.mixing.vocabulary import CommonVocabulary
from prefmix.mixing.ways_to_mix import MIXINGS
from prefmix.server.api.resolve import split_model
from prefmix.server.api.state import MixtureState, mixture_state
from prefmix.server.http.openai_route import OpenAIRoute
from prefmix.weights.store.profiles import ProfileSet

router = APIRouter(route_class=OpenAIRoute)


@router.get("/v1/models")
async def list_models(raw_request: Request) -> JSONResponse:
    """Lists the mixture, and every profile as NAME@PROFILE."""
    serving: OpenAIServingModels = raw_request.app.state.openai_serving_models
    listing = await serving.show_available_models()
    return JSONResponse(with_profiles(listing.model_dump(), mixture_state(raw_request)))


@router.get("/v1/models/{model:path}")
async def show_model(model: str, raw_request: Request) -> JSONResponse:
    """One entry of that list, by its id."""
    if not model:
        return await list_models(raw_request)
    serving: OpenAIServingModels = raw_request.app.state.openai_serving_models
    state = mixture_state(raw_request)
    split_model(model, state.profiles.current, model_names=state.model_names)
    listing = with_profiles((await serving.show_available_models()).model_dump(), state)
    return JSONResponse(next(card for card in listing["data"] if card["id"] == model))


@router.get("/v1/mixture")
async def show_mixture(raw_request: Request) -> JSONResponse:
    """The policies, the reference, the weight space and the profiles in force."""
    return JSONResponse(describe(mixture_state(raw_request)))


def with_profiles(listing: dict[str, Any], state: MixtureState) -> dict[str, Any]:
    """Adds a model card per profile after each card of the mixture."""
    profiles = state.profiles.current.profiles
    cards: list[dict[str, Any]] = []
    for card in listing["data"]:
        if card["id"] not in state.model_names:
            cards.append(card)
            continue
        name = card["id"]
        # vLLM gives the path of the first policy, which is only a part of what is served.
        whole = {**card, "root": name}
        cards.append(whole)
        cards.extend({**whole, "id": f"{name}@{profile}", "parent": name} for profile in profiles)
    return {**listing, "data": cards}


def describe(state: MixtureState) -> dict[str, Any]:
    """The body of `GET /v1/mixture`."""
    spec, profiles = state.spec, state.profiles.current
    return {
        "object": "mixture",
        "model": state.model_names[0],
        "weight_space": spec.weight_space,
        "mixing": spec.mixing,
        "ways_to_mix": list(MIXINGS if spec.base is not None else MIXINGS[:1]),
        "policies": [_policy(policy, state) for policy in spec.policies],
        "base": spec.base,
        "reference": None if spec.reference is None else _policy(spec.reference, state),
        "request_prompts": state.prompts.request_prompts,
        "vocabulary": _vocabulary(state.vocabulary),
        "defaults_from": spec.defaults_from,
        "default_profile": profiles.default,
        "version": profiles.version,
        "sha256": profiles.sha256,
        "answers_at_once": state.admission.max_answers,
        "candidates": {
            "most": state.candidates.most,
            "max_tokens": state.candidates.max_tokens,
        },
        "profiles": {name: _profile(profiles, name) for name in profiles.profiles},
        "dormant_profiles": {name: _dormant(profiles, name) for name in profiles.dormant},
    }


def _profile(profiles: ProfileSet, name: str) -> dict[str, Any]:
    """A profile without its provenance, which is for the admin."""
    return {key: value for key, value in profiles.profile(name).items() if key != "provenance"}


def _dormant(profiles: ProfileSet, name: str) -> dict[str, Any]:
    """A profile that waits for policies, with their names."""
    profile = profiles.dormant[name]
    described = {key: each for key, each in profile.document().items() if key != "provenance"}
    return {**described, "absent": profile.absent(profiles.member_names)}


def _vocabulary(vocabulary: CommonVocabulary | None) -> dict[str, int] | None:
    if vocabulary is None:
        return None
    return {"size": vocabulary.size, "never_drawn": vocabulary.num_never_drawn}


def _policy(policy: Policy, state: MixtureState) -> dict[str, Any]:
    """A policy; of its prompt only that there is one."""
    has_prompt = policy.name in state.prompts.systems
    return {
        "name": policy.name,
        "model": policy.model,
        "revision": policy.revision,
        "has_prompt": has_prompt,
    }
