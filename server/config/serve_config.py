"""The configuration of `prefmix serve`: its keys, and the mixture, profiles and limits in them.

prefmix.server.config.config_file reads it from a file and flags.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
)

from prefmix.mixing.spec import MixtureSpec, SpecError, VocabularyRule, WeightSpace
from prefmix.mixing.ways_to_mix import Mixing
from prefmix.server.config.addresses import HostName, ProxyAddress
from prefmix.server.config.errors import ConfigError
from prefmix.server.config.limits import (
    DRAIN_TIMEOUT_S,
    MAX_BODY_BYTES,
    MAX_CANDIDATE_TOKENS,
    MAX_CANDIDATES,
    REQUEST_TIMEOUT_S,
    Limits,
    none_of_word,
)
from prefmix.server.config.model_paths import model_entry
from prefmix.server.config.policy_table import (
    BaseEntry,
    PolicyEntry,
    PolicyTable,
    SystemText,
    check_systems,
    policies_of_base,
)
from prefmix.server.config.prompt_settings import ONE_PROMPT, PromptSettings
from prefmix.server.config.slot_settings import MAX_ADAPTER_RANK, with_slots
from prefmix.server.config.telemetry_settings import STATISTICS_EVERY
from prefmix.server.telemetry.request_log import RequestLog
from prefmix.weights.store.profiles import (
    MAX_PROFILES,
    ProfileError,
    ProfileSet,
    build_profile_set,
)
from prefmix.weights.store.sleep import build_with_dormant


class ServeConfig(BaseModel):
    """The keys of a configuration file. Flags of the same name override them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "prefmix"
    """The model name that clients put in `model`."""
    policies: PolicyTable = Field(default_factory=dict)
    """Policy name -> full checkpoint, in weight order. With `base`: an adapter, or the base."""
    base: Annotated[BaseEntry, BeforeValidator(model_entry)] | None = None
    """The model of which all policies are `adapters`, or which they are themselves."""
    adapters: PolicyTable = Field(default_factory=dict)
    """Policy name -> LoRA adapter (PEFT format) of `base`, in weight order."""
    reference: PolicyTable | None = None
    """Name -> model of the reference policy; exactly one."""
    systems: dict[str, SystemText] = Field(default_factory=dict)
    """Policy name -> the system message that it alone reads before every conversation, instead of
    `system` in the tables. With `base`, a name that no table has is the base itself."""
    request_prompts: StrictBool = False
    """True lets requests give policies prompts of their own."""
    max_own_tokens: StrictInt | None = Field(None, ge=1)
    """Most tokens of the policies' own prompts of a request together. None allows eight times the
    longest context."""
    weight_space: WeightSpace = "simplex"
    """simplex: weights are non-negative ratios. affine: weights are any numbers that sum to 1."""
    mixing: Mixing = "logits"
    """The way to mix of requests that name none. logits mixes the policies' predictions, parameters
    their parameters (adapters of one base only)."""
    vocabulary: VocabularyRule = "prefix"
    """The rule on vocabularies that differ. same refuses them, prefix allows added tokens behind
    the last common one, common allows added tokens anywhere; those that differ are never drawn."""
    defaults_from: str | None = None
    """The policy whose files give tokenizer, chat template, end tokens and defaults of generation;
    None: the first policy, or the base."""
    profiles: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Profile name -> {policy: number}, or {"weights": {policy: number}, "mixing": ...}."""
    default_profile: str | None = None
    """The profile of requests that name neither weights nor a profile."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: StrictInt = Field(8000, ge=1, le=65535)
    """Port to listen on."""
    allowed_hosts: tuple[HostName, ...] = ()
    """Further names under which clients may ask, beside `localhost`, addresses and `host`."""
    trusted_proxies: tuple[ProxyAddress, ...] = ()
    """Addresses of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed."""
    allow_no_api_key: bool = False
    """True lets the server listen without an API key on an address that other machines reach."""
    weights_store: str | None = None
    """File that keeps the profiles. It wins over `profiles`, which only fill a file that is new."""
    max_profiles: StrictInt = Field(MAX_PROFILES, ge=1)
    """Most profiles that there may be; a change or a file with more is refused."""
    dormant_profiles: StrictBool = False
    """True keeps profiles that name absent policies, as dormant ones; False refuses them."""
    adapter_slots: StrictInt = Field(0, ge=0)
    """Number of adapters of `base` that can be added while the server runs; room is kept for
    them."""
    adapter_slots_without_kv: StrictInt = Field(0, ge=0)
    """Number of the slots that have no KV cache: what is added there has weight only where
    parameters are mixed, and takes no cache from the others."""
    max_adapter_rank: StrictInt = Field(MAX_ADAPTER_RANK, ge=1)
    """Largest rank of an adapter that is added."""
    slot_prompts: StrictBool = True
    """True lets slots hold policies with prompts of their own. False is for engines that cannot
    give policies any."""
    policies_dir: str | None = None
    """Folder of the adapters that can be added, each in a folder of its own below it."""
    policies_manifest: str | None = None
    """File that names the policies to be added, followed whenever it changes; requests can then
    neither add nor remove policies."""
    admin_port: StrictInt | None = Field(None, ge=1, le=65535)
    """Port of 127.0.0.1 for the admin routes alone; None puts them on `port`."""
    statistics_every: StrictInt = Field(STATISTICS_EVERY, ge=0)
    """The mixture is measured for the metrics at every n-th engine step; 0 measures none."""
    request_log: RequestLog = "off"
    """off, text or json: writes one line on stderr for each request, without its text."""
    console: bool = True
    """True serves the mixing console at /console."""
    console_prompt: str | None = None
    """The prompt that the console begins with; None leaves it empty."""
    reports_dir: str | None = None
    """Folder of reports of `prefmix fit` and `prefmix eval`, which the console lists; they may be
    written later."""
    allow_unsafe_weights: bool = False
    """True also loads checkpoints in formats that can run code; False only safetensors. No file
    can set it, only a flag."""
    allow_unsafe_engine_flags: bool = False
    """True also takes flags of vLLM that can load code. No file can set it, only a flag."""
    max_waiting: StrictInt | None = Field(None, ge=0)
    """Most requests that may wait for the engine; further ones are refused with 503. None allows
    half as many as can run at once. 0 allows none: a request must be able to run at once."""
    request_timeout: Annotated[float | None, BeforeValidator(none_of_word)] = Field(
        REQUEST_TIMEOUT_S, gt=0, allow_inf_nan=False
    )
    """Seconds after which a request for text is ended with 504; none sets no limit."""
    max_body_bytes: StrictInt = Field(MAX_BODY_BYTES, ge=1024)
    """Most bytes of a request's body; a longer one is refused with 413."""
    max_connections: StrictInt | None = Field(None, ge=1)
    """Most connections of each API process. None allows two for each answer that can run or wait,
    and 1024 more, as far as there are file descriptors."""
    max_candidates: StrictInt = Field(MAX_CANDIDATES, ge=0)
    """Most candidates that a request may have drawn for an answer; 0 serves none."""
    max_candidate_tokens: StrictInt = Field(MAX_CANDIDATE_TOKENS, ge=1)
    """Longest answer that is picked from candidates, in tokens."""
    drain_timeout: float = Field(DRAIN_TIMEOUT_S, ge=0, allow_inf_nan=False)
    """Seconds that running requests have to end once the server is asked to end."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """vLLM's engine and server flags, without their dashes."""

    def spec(self) -> MixtureSpec:
        """The mixture of these policies. Raises: ConfigError."""
        if self.reference is not None and len(self.reference) != 1:
            names = ", ".join(self.reference) or "none"
            raise ConfigError(f"reference needs exactly one NAME and MODEL, got {names}")
        if self.base is not None and self.base.hf_overrides:
            raise ConfigError(
                "base has hf_overrides; give overrides of the base as vLLM's --hf-overrides, or "
                "hf_overrides: under engine:"
            )
        reference = [e.policy(name, self.base) for name, e in (self.reference or {}).items()]
        prompts = self.prompts()
        if prompts.systems and self.mixing == "parameters":
            raise ConfigError(ONE_PROMPT)
        try:
            return MixtureSpec(
                policies=tuple(e.policy(name, self.base) for name, e in self._table().items()),
                reference=reference[0] if reference else None,
                weight_space=self.weight_space,
                mixing=self.mixing,
                base=None if self.base is None else self.base.model,
                base_revision=None if self.base is None else self.base.revision,
                vocabulary=self.vocabulary,
                defaults_from=self.defaults_from,
                has_prompts=prompts.are_on,
                prompts_sha256=prompts.sha256,
            )
        except SpecError as error:
            raise ConfigError(str(error)) from None

    def engine_spec(self, spec: MixtureSpec) -> MixtureSpec:
        """The mixture of `spec` as a server's engine gets it, with slots. Raises: ConfigError."""
        return with_slots(
            spec,
            adapter_slots=self.adapter_slots,
            slots_without_kv=self.adapter_slots_without_kv,
            max_adapter_rank=self.max_adapter_rank,
            slot_prompts=self.slot_prompts,
            policies_dir=self.policies_dir,
            policies_manifest=self.policies_manifest,
        )

    def prompts(self) -> PromptSettings:
        """The prompts of the policies' own. Raises: ConfigError."""
        members = {**self._table(), **(self.reference or {})}
        check_systems(self.systems, members, has_base=self.base is not None)
        texts = {name: self.systems.get(name, entry.system) for name, entry in members.items()}
        return PromptSettings(
            systems={name: text for name, text in texts.items() if text is not None},
            request_prompts=self.request_prompts,
            max_own_tokens=self.max_own_tokens,
        )

    def _table(self) -> dict[str, PolicyEntry]:
        """The policies in weight order, without the reference."""
        if self.base is None and not self.adapters:
            return self.policies
        named = {*self.policies, *self.adapters, *(self.reference or {})}
        others = {name: text for name, text in self.systems.items() if name not in named}
        return policies_of_base(self.base, self.policies, self.adapters, others)

    def is_headless(self, passthrough: Sequence[str]) -> bool:
        """True for engines alone, which another machine's server asks: nobody asks this one.

        Args: passthrough: the words after `--`.
        """
        return "--headless" in passthrough or self.engine.get("headless") is True

    def limits(self) -> Limits:
        """The limits on the work that the server takes on."""
        return Limits(
            max_waiting=self.max_waiting,
            request_timeout=self.request_timeout,
            max_body_bytes=self.max_body_bytes,
            max_connections=self.max_connections,
            max_candidates=self.max_candidates,
            max_candidate_tokens=self.max_candidate_tokens,
            drain_timeout=self.drain_timeout,
        )

    def profile_set(self, spec: MixtureSpec) -> ProfileSet:
        """The profiles to start with. Raises: ConfigError."""
        build = build_with_dormant if self.dormant_profiles else build_profile_set
        try:
            return build(
                {name: _parts(entry)[0] for name, entry in self.profiles.items()},
                spec,
                default=self.default_profile,
                mixings={name: _parts(entry)[1] for name, entry in self.profiles.items()},
            )
        except ProfileError as error:
            raise ConfigError(f"profiles: {error}") from None


def _parts(profile: Mapping[str, Any]) -> tuple[Any, Any]:
    """(weights, way to mix or None) of a profile in the file; a policy may be named `weights`."""
    if isinstance(profile.get("weights"), Mapping) and profile.keys() <= {"weights", "mixing"}:
        return profile["weights"], profile.get("mixing")
    return profile, None
