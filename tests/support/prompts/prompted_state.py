"""The state of servers whose policies have prompts of their own, without an engine."""

from __future__ import annotations

import dataclasses

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.mixing.vocabulary import CommonVocabulary
from prefmix.server.api.state import MixtureState
from prefmix.server.config.prompt_settings import PromptSettings
from prefmix.server.slots.policy_set import CurrentPolicies, PolicySet
from prefmix.weights.store.profiles import CurrentProfiles, build_profile_set
from support.text_requests import mixture_state

KIND, BRIEF = "Be the kind secret.", "Be the brief secret."

BASE = "org/base"
THREE = MixtureSpec(
    policies=tuple(Policy(name=name, model=BASE) for name in ("kind", "brief")),
    reference=Policy(name="plain", model=BASE),
    base=BASE,
    has_prompts=True,
)
GUIDED = MixtureSpec(
    policies=(Policy(name="main", model=BASE),),
    reference=Policy(name="plain", model=BASE),
    base=BASE,
    weight_space="affine",
    has_prompts=True,
)


def state_of(spec: MixtureSpec, settings: PromptSettings) -> MixtureState:
    weights = {name: 1.0 / len(spec.policies) for name in spec.policy_names}
    return dataclasses.replace(
        mixture_state(),
        policies=CurrentPolicies(PolicySet.of(spec, prompts=settings)),
        profiles=CurrentProfiles(build_profile_set({"even": weights}, spec)),
        vocabulary=CommonVocabulary(num_rows=100, differing=frozenset({9})),
    )
