"""What `prefmix serve` was asked to serve: a YAML file, flags on top, checked once.

Every problem ends in one ConfigError whose message names the file or flag, the field, what came
and what is allowed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, ValidationError

from prefmix.mixing.spec import MixtureSpec, Policy, SpecError, WeightSpace
from prefmix.server.config.errors import ConfigError
from prefmix.server.config.limits import DRAIN_TIMEOUT_S, MAX_BODY_BYTES, Limits
from prefmix.server.config.model_paths import model_entry, resolve_models
from prefmix.server.config.telemetry_settings import STATISTICS_EVERY
from prefmix.server.config.yaml_file import YamlError, read_yaml
from prefmix.server.telemetry.request_log import RequestLog
from prefmix.weights.store.profiles import ProfileError, ProfileSet, build_profile_set

MODEL_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./:-]{0,127}")
"""Served names: what clients put in `model`. No "@": it separates the profile."""


class PolicyEntry(BaseModel):
    """Where one policy's parameters are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    """A local folder or a hub id."""
    revision: str | None = None
    """Hub revision (branch, tag or commit)."""


PolicyTable = dict[str, Annotated[PolicyEntry, BeforeValidator(model_entry)]]


class ServeConfig(BaseModel):
    """The keys of a configuration file; flags of the same name override them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "prefmix"
    """What clients put in `model`."""
    policies: PolicyTable = Field(default_factory=dict)
    """Policy name to model, in weight order: full checkpoints."""
    base: Annotated[PolicyEntry, BeforeValidator(model_entry)] | None = None
    """One model that all policies share; then they are given as `adapters` of it."""
    adapters: PolicyTable = Field(default_factory=dict)
    """Policy name to LoRA adapter (PEFT format) of `base`, in weight order."""
    reference: PolicyTable | None = None
    """The reference policy: exactly one name and model."""
    weight_space: WeightSpace = "simplex"
    """simplex: non-negative ratios. affine: any numbers that sum to 1."""
    profiles: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Profile name to {policy: number}."""
    default_profile: str | None = None
    """The profile of requests that name nothing."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: StrictInt = Field(8000, ge=1, le=65535)
    """Port to listen on."""
    weights_store: str | None = None
    """File of the profiles. If it exists it wins over `profiles`; if not they are its first."""
    admin_port: StrictInt | None = Field(None, ge=1, le=65535)
    """Port of 127.0.0.1 for the admin routes alone; without one they are on `port`."""
    statistics_every: StrictInt = Field(STATISTICS_EVERY, ge=0)
    """All tokens of every so many engine steps are measured for the metrics; 0 measures none."""
    request_log: RequestLog = "off"
    """off, text or json: one line on stderr for each request, without its text."""
    console: bool = True
    """Whether the mixing console is served at /console."""
    fit_report: str | None = None
    """A fit's report, or its folder, for the console to link; it may be written later."""
    allow_unsafe_weights: bool = False
    """Whether checkpoints may be other than safetensors files: formats that can run code."""
    max_waiting: StrictInt | None = Field(None, ge=0)
    """How many requests may wait for the engine, beyond which they are refused with 503. None:
    half of what it can run at once. 0: none, a request is taken only if it can run at once."""
    request_timeout: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Seconds a request for text may take before it is ended with 504; None has no bound."""
    max_body_bytes: StrictInt = Field(MAX_BODY_BYTES, ge=1024)
    """Bytes a request's body may have, beyond which it is refused with 413."""
    drain_timeout: float = Field(DRAIN_TIMEOUT_S, ge=0, allow_inf_nan=False)
    """Seconds that requests under way have to end once the server is asked to."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Any vLLM engine or server flag, without its dashes."""

    def spec(self) -> MixtureSpec:
        """The mixture these policies make."""
        reference = [_policy(name, entry) for name, entry in (self.reference or {}).items()]
        if self.reference is not None and len(reference) != 1:
            names = ", ".join(self.reference) or "none"
            raise ConfigError(f"reference needs exactly one NAME and MODEL, got {names}")
        table = self.policies
        if self.base is not None or self.adapters:
            table = self._adapters_of_base()
        try:
            return MixtureSpec(
                policies=tuple(_policy(name, entry) for name, entry in table.items()),
                reference=reference[0] if reference else None,
                weight_space=self.weight_space,
                base=None if self.base is None else self.base.model,
                base_revision=None if self.base is None else self.base.revision,
            )
        except SpecError as error:
            raise ConfigError(str(error)) from None

    def limits(self) -> Limits:
        """How much work the server takes on."""
        return Limits(
            max_waiting=self.max_waiting,
            request_timeout=self.request_timeout,
            max_body_bytes=self.max_body_bytes,
            drain_timeout=self.drain_timeout,
        )

    def _adapters_of_base(self) -> PolicyTable:
        if self.base is None:
            raise ConfigError(
                "adapters need the model they adapt: add --base MODEL, or base: in the file"
            )
        if self.policies:
            raise ConfigError(
                "policies and base are both given; serve either full checkpoints (policies) or "
                "one base and its adapters (base, adapters)"
            )
        if not self.adapters:
            raise ConfigError("base needs at least one adapter; add --adapter NAME=PATH")
        return self.adapters

    def profile_set(self, spec: MixtureSpec) -> ProfileSet:
        """The profiles to start with."""
        try:
            return build_profile_set(self.profiles, spec, default=self.default_profile)
        except ProfileError as error:
            raise ConfigError(f"profiles: {error}") from None


def load_config(path: Path | None, overrides: Mapping[str, Any]) -> ServeConfig:
    """Reads the file, if any, puts the flags on top and checks the whole.

    Args:
      path: the configuration file; None when everything comes from flags.
      overrides: fields given as flags, which replace the file's.
    Raises: ConfigError.
    """
    data = {} if path is None else _file_values(path, replaced=overrides)
    if "policies" in overrides and not {"base", "adapters"} & set(overrides):
        data = {key: value for key, value in data.items() if key not in ("base", "adapters")}
    if {"base", "adapters"} & set(overrides) and "policies" not in overrides:
        data.pop("policies", None)
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


def _file_values(path: Path, *, replaced: Mapping[str, Any]) -> dict[str, Any]:
    """The file's values that no flag replaces; its relative paths begin at the file's folder."""
    data = {key: value for key, value in _read(path).items() if key not in replaced}
    folder = path.resolve().parent
    for table in ("policies", "adapters", "reference"):
        if isinstance(data.get(table), dict):
            data[table] = resolve_models(data[table], folder=folder, where=path)
    if data.get("base") is not None:
        data |= resolve_models({"base": data["base"]}, folder=folder, where=path)
    for key in ("weights_store", "fit_report"):
        if isinstance(data.get(key), str):
            data[key] = str(folder / Path(data[key]).expanduser())
    return data


def _policy(name: str, entry: PolicyEntry) -> Policy:
    try:
        return Policy(name=name, model=entry.model, revision=entry.revision)
    except SpecError as error:
        raise ConfigError(str(error)) from None


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
    """The first of pydantic's errors as one sentence."""
    first = error.errors()[0]
    parts = [str(part) for part in first["loc"]]
    source = "" if path is None or parts[0] in overrides else f"{path}: "
    if first["type"] == "extra_forbidden":
        fields = PolicyEntry.model_fields if len(parts) > 1 else ServeConfig.model_fields
        inside = ".".join(parts[:-1])
        return f"{source}{inside + ': ' if inside else ''}{_unknown_key(parts[-1], fields)}"
    if first["type"] == "missing":
        return f"{source}{'.'.join(parts)} is missing"
    if parts[-1] == "[key]":
        return f"{source}{parts[0]} has the key {first['input']!r}; names are strings, so quote it"
    expected = first["msg"].removeprefix("Input should be ")
    expected = expected.replace("a valid dictionary", "a mapping")
    return f"{source}{'.'.join(parts)} is {first['input']!r:.80}, expected {expected}"


def _unknown_key(key: object, allowed: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(str(key), allowed, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"unknown key {key!r}{hint}; allowed: {', '.join(allowed)}"
