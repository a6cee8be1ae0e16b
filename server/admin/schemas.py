"""The bodies of the admin routes' requests and answers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, model_validator

from prefmix.mixing.system_texts import system_text
from prefmix.mixing.ways_to_mix import Mixing


class ProfileBody(BaseModel):
    """A profile to store."""

    model_config = ConfigDict(extra="forbid")

    weights: dict[str, Any]
    """Policy to number: ratios on the simplex, divided by their sum."""
    mixing: Mixing | None = None
    """The profile's way to mix, logits or parameters; null leaves it to the server."""
    provenance: dict[str, Any] = Field(default_factory=dict)
    """Origin of the weights; stored unchanged."""


def _system(value: object) -> str | None:
    if value is None:
        return None
    try:
        return system_text(value)
    except ValueError as error:
        raise ValueError(f"system is {error}") from None


class PolicyBody(BaseModel):
    """A policy to add: an adapter of the base, a prompt of the base, or both."""

    model_config = ConfigDict(extra="forbid")

    adapter: str | None = None
    """The folder of a LoRA adapter of the base, relative to the server's folder of policies."""
    system: Annotated[str | None, BeforeValidator(_system)] = None
    """The system message that the policy alone reads before every conversation; no answer, log or
    metric shows it."""
    kv_cache: StrictBool | None = None
    """False takes a slot without KV cache, for requests that mix parameters only; null takes one
    with, if the server has any. A policy with a prompt needs one."""
    model: str | None = None
    """A full checkpoint, which a running server refuses with the reason."""

    @model_validator(mode="after")
    def _is_something(self) -> PolicyBody:
        if self.adapter is None and self.system is None and self.model is None:
            raise ValueError(
                "the body names no policy; give adapter (a folder below the server's "
                "--policies-dir), system (a text), or both"
            )
        if self.system is not None and self.kv_cache is False:
            raise ValueError(
                "kv_cache is false, but a policy with a prompt of its own (system) needs a KV "
                "cache of its own; leave one of them out"
            )
        return self


class DefaultBody(BaseModel):
    """The profile to make the default."""

    model_config = ConfigDict(extra="forbid")

    profile: str


class RollbackBody(BaseModel):
    """The version to return to."""

    model_config = ConfigDict(extra="forbid")

    version: Annotated[int, Field(ge=1, strict=True)] | None = None
    """None is the version before the present one."""


class ChangeAnswer(BaseModel):
    """The result of a change."""

    version: int
    """The version in force in every API process; after a dry run, the one it would become."""
    sha256: str
    """Hash of that version's content."""
    previous_version: int
    previous_sha256: str
    changed: bool
    """False if the content was equal already."""
    dry_run: bool
    lost_mixings: dict[str, Mixing] = Field(default_factory=dict)
    """Profiles that had a way to mix of their own before and have the server's now, with that way:
    a profile that is replaced without `mixing` has none."""
    dormant: dict[str, list[str]] = Field(default_factory=dict)
    """The dormant profiles, each with the absent policies that it names."""
    set_aside: str | None = None
    """Path to which a rollback moved an unreadable store file; else null."""
