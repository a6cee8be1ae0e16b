"""The state that the routes share: the mixture, its profiles, admission and statistics."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from prefmix.mixing.spec import MixtureSpec
from prefmix.mixing.vocabulary import CommonVocabulary
from prefmix.server.api.candidates.wish import CandidateLimits
from prefmix.server.api.prompts.request_prompts import PromptRules
from prefmix.server.api.resolve import Preferences, Resolution, resolve
from prefmix.server.config.prompt_settings import PromptSettings
from prefmix.server.slots.policy_set import CurrentPolicies
from prefmix.server.telemetry.engine_statistics import EngineStatistics
from prefmix.server.traffic.admission_control import AdmissionController
from prefmix.weights.store.profiles import CurrentProfiles

STATE_KEY = "prefmix"
"""The attribute of `app.state` that holds a MixtureState."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureState:
    """The shared state; one per API process, made when the engine is ready."""

    policies: CurrentPolicies
    model_names: tuple[str, ...]
    """Names the mixture is served under; the first is the default."""
    profiles: CurrentProfiles
    statistics: EngineStatistics
    admission: AdmissionController
    max_model_len: int
    """Most tokens of a prompt and its answer together."""
    candidates: CandidateLimits
    vocabulary: CommonVocabulary | None = None
    """The token ids that are drawn; None if the engine does not tell."""
    unread_fields: frozenset[str] = frozenset()
    """Fields of vLLM's bodies that would travel to the engine although nothing there reads them."""

    @property
    def prompt_rules(self) -> PromptRules:
        """The rules for prompts of the policies' own."""
        return PromptRules(
            spec=self.spec,
            settings=self.prompts,
            max_model_len=self.max_model_len,
            vocabulary=self.vocabulary,
        )

    @property
    def prompts(self) -> PromptSettings:
        """The prompts that policies have of their own at this moment."""
        return self.policies.current.prompts

    @property
    def spec(self) -> MixtureSpec:
        """The mixture in force at this moment, as clients see it."""
        return self.policies.current.spec

    def resolve(self, preferences: Preferences) -> Resolution:
        """Resolves a request against the policies and profiles in force at this moment."""
        return resolve(
            preferences,
            spec=self.spec,
            profiles=self.profiles.current,
            model_names=self.model_names,
        )


def mixture_state(request: Request) -> MixtureState:
    """The state of the app that received `request`."""
    state: MixtureState = getattr(request.app.state, STATE_KEY)
    return state
