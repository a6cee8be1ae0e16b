"""The bodies of the admin routes' requests and answers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

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


class PolicyBody(BaseModel):
    """A policy to add."""

    model_config = ConfigDict(extra="forbid")

    adapter: str
    """The folder of a LoRA adapter of the base, relative to the server's folder of policies."""


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
    set_aside: str | None = None
    """Path to which a rollback moved an unreadable store file; else null."""
