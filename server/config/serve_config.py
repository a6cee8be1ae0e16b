"""The configuration of `prefmix serve`: a YAML file, overridden by flags, checked once.

Every problem is one ConfigError. Its message names the file or flag, the field, the value that came
and the values that are allowed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    ValidationError,
)

from prefmix.mixing.shown_value import shown
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
from prefmix.server.config.model_paths import expanded, model_entry, resolve_models
from prefmix.server.config.policy_table import (
    BaseEntry,
    PolicyEntry,
    PolicyTable,
    SystemText,
    check_systems,
    policies_of_base,
)
from prefmix.server.config.prompt_settings import PromptSettings
from prefmix.server.config.slot_settings import MAX_ADAPTER_RANK, with_slots
from prefmix.server.config.telemetry_settings import STATISTICS_EVERY
from prefmix.server.config.yaml_file import YamlError, read_yaml
from prefmix.server.telemetry.request_log import RequestLog
from prefmix.weights.store.profiles import (
    MAX_PROFILES,
    ProfileError,
    ProfileSet,
    build_profile_set,
)

MODEL_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./:-]{0,127}")
"""Names that clients put in `model`. They have no "@", which separates the profile."""


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
    adapter_slots: StrictInt = Field(0, ge=0)
    """Number of adapters of `base` that can be added while the server runs; room is kept for
    them."""
    max_adapter_rank: StrictInt = Field(MAX_ADAPTER_RANK, ge=1)
    """Largest rank of an adapter that is added."""
    policies_dir: str | None = None
    """Folder of the adapters that can be added, each in a folder of its own below it."""
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
            raise ConfigError(
                "mixing is parameters, which is one model that reads one prompt, but policies have "
                "prompts of their own (system); leave the prompts out, or mix logits"
            )
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
            max_adapter_rank=self.max_adapter_rank,
            policies_dir=self.policies_dir,
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
        try:
            return build_profile_set(
                {name: _parts(entry)[0] for name, entry in self.profiles.items()},
                spec,
                default=self.default_profile,
                mixings={name: _parts(entry)[1] for name, entry in self.profiles.items()},
            )
        except ProfileError as error:
            raise ConfigError(f"profiles: {error}") from None


def load_config(path: Path | None, overrides: Mapping[str, Any]) -> ServeConfig:
    """Reads the file, if any, overrides it with the flags and checks the result.

    Args:
      path: the configuration file; None when everything comes from flags.
      overrides: fields given as flags.
    Raises: ConfigError.
    """
    data = {} if path is None else _file_values(path, replaced=overrides)
    if "policies" in overrides and not {"base", "adapters"} & set(overrides):
        data = {key: value for key, value in data.items() if key not in ("base", "adapters")}
    if {"base", "adapters"} & set(overrides) and _has_checkpoints(data.get("policies")):
        del data["policies"]
    try:
        config = ServeConfig.model_validate({**data, **overrides})
    except ValidationError as error:
        raise ConfigError(_sentence(error, path, overrides)) from None
    if not MODEL_NAME_PATTERN.fullmatch(config.name):
        raise ConfigError(
            f"name is {config.name!r}; use 1 to 128 letters, digits or any of _ . / : -, "
            "beginning with a letter or digit ('@' separates the profile)"
        )
    return config


_MOST_LISTED = 8
"""Names that a message lists where their list is in the manual, too."""

_FLAGS_ONLY = ("allow_unsafe_weights", "allow_unsafe_engine_flags")
"""Fields by which whoever writes a file could run code on this machine."""


def _file_values(path: Path, *, replaced: Mapping[str, Any]) -> dict[str, Any]:
    """The file's values that no flag replaces; its relative paths begin at the file's folder."""
    data = {key: value for key, value in _read(path).items() if key not in replaced}
    for key in _FLAGS_ONLY:
        if data.get(key, False) is not False:
            raise ConfigError(
                f"{path}: {key} is {shown(data[key])}, but whoever writes this file must not be "
                f"able to run code here; give --{key.replace('_', '-')} on the command line"
            )
    folder = path.resolve().parent
    for table in ("policies", "adapters", "reference"):
        if isinstance(data.get(table), dict):
            data[table] = resolve_models(data[table], folder=folder, where=path)
    if data.get("base") is not None:
        data |= resolve_models({"base": data["base"]}, folder=folder, where=path)
    for key in ("weights_store", "reports_dir", "policies_dir"):
        if isinstance(data.get(key), str):
            data[key] = str(folder / expanded(data[key], where=f"{path}: {key}"))
    return data


def _has_checkpoints(table: object) -> bool:
    """True for a table of full checkpoints, which a base replaces."""
    entries = table.values() if isinstance(table, dict) else [{"model": table}]
    return any(isinstance(entry, dict) and entry.get("model") is not None for entry in entries)


def _parts(profile: Mapping[str, Any]) -> tuple[Any, Any]:
    """(weights, way to mix or None) of a profile in the file; a policy may be named `weights`."""
    if isinstance(profile.get("weights"), Mapping) and profile.keys() <= {"weights", "mixing"}:
        return profile["weights"], profile.get("mixing")
    return profile, None


def _read(path: Path) -> dict[str, Any]:
    try:
        data = read_yaml(path)
    except YamlError as error:
        raise ConfigError(str(error)) from None
    for key in data:
        if key not in ServeConfig.model_fields:
            raise ConfigError(f"{path}: {_unknown_key(key, ServeConfig.model_fields)}")
    return data


def _sentence(error: ValidationError, path: Path | None, overrides: Mapping[str, Any]) -> str:
    """Says the first of pydantic's errors in one sentence."""
    first = error.errors()[0]
    parts = [str(part) for part in first["loc"]]
    source = "" if path is None or parts[0] in overrides else f"{path}: "
    if first["type"] == "extra_forbidden":
        entry = BaseEntry if parts[0] == "base" else PolicyEntry
        fields = entry.model_fields if len(parts) > 1 else ServeConfig.model_fields
        inside = ".".join(parts[:-1])
        return f"{source}{inside + ': ' if inside else ''}{_unknown_key(parts[-1], fields)}"
    if first["type"] == "missing":
        return f"{source}{'.'.join(parts)} is missing"
    if parts[-1] == "[key]":
        key = shown(first["input"])
        return f"{source}{parts[0]} has the key {key}; names are strings, so quote it"
    if parts[-1] == "system" or (parts[0] == "systems" and len(parts) > 1):
        return f"{source}{'.'.join(parts)} is {first['msg'].removeprefix('Value error, ')}"
    expected = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    expected = expected.replace("a valid dictionary", "a mapping")
    expected = re.sub("a mapping or instance of [A-Za-z]+Entry", "a folder or hub id", expected)
    return f"{source}{'.'.join(parts)} is {shown(first['input'])}, expected {expected}"


def _unknown_key(key: object, allowed: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(str(key).replace("-", "_"), allowed, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    where = f"allowed: {', '.join(allowed)}"
    if len(allowed) > _MOST_LISTED:
        where = "'prefmix help serve' lists the keys, and vLLM's flags stand under engine:"
    return f"unknown key {shown(key)}{hint}; {where}"
