"""The tables of policies of a configuration: their models, and the prompts of their own.

With a base, a policy is an adapter of it or the base itself, told apart by its prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from prefmix.mixing.name_list import listed
from prefmix.mixing.spec import Policy, SpecError
from prefmix.mixing.system_texts import system_text
from prefmix.server.config.errors import ConfigError
from prefmix.server.config.model_paths import model_entry


class BaseEntry(BaseModel):
    """The place of one model's parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    """A local folder or a hub id."""
    revision: str | None = None
    """Hub revision (branch, tag or commit)."""
    hf_overrides: dict[str, Any] = Field(default_factory=dict)
    """Entries of a full checkpoint's config.json that are to count instead of the file's."""


SystemText = Annotated[str, BeforeValidator(system_text)]
"""The system message that one policy reads before a request's own; no message shows it."""


class PolicyEntry(BaseEntry):
    """A policy: a full checkpoint, an adapter of the base, or, with neither, the base itself."""

    model: str | None = None  # type: ignore[assignment]
    """A local folder or a hub id: of a full checkpoint, or among `adapters` of an adapter."""
    adapter: str | None = None
    """Folder or hub id of a LoRA adapter (PEFT format) of the base."""
    system: SystemText | None = None
    """The system message that this policy alone reads before every conversation."""

    def policy(self, name: str, base: BaseEntry | None) -> Policy:
        """The policy of the engine. Args: base: None for full checkpoints. Raises: ConfigError."""
        model, revision = self.adapter or self.model, self.revision
        if self.adapter is not None and (base is None or self.model is not None):
            raise ConfigError(
                f"policy {name!r} has an adapter, which needs a base and no model of its own: add "
                "--base MODEL, or base: in the file"
            )
        if model is None and base is None:
            raise ConfigError(f"policies.{name}.model is missing")
        if model is None and base is not None:
            if revision not in (None, base.revision):
                raise ConfigError(
                    f"policy {name!r} has a revision but no adapter, so it is the base itself; "
                    "give the revision to base"
                )
            model, revision = base.model, base.revision
        try:
            return Policy(
                name=name, model=model or "", revision=revision, hf_overrides=self.hf_overrides
            )
        except SpecError as error:
            raise ConfigError(str(error)) from None


PolicyTable = dict[str, Annotated[PolicyEntry, BeforeValidator(model_entry)]]
"""Name -> policy, in weight order."""


def policies_of_base(
    base: BaseEntry | None,
    policies: Mapping[str, PolicyEntry],
    adapters: Mapping[str, PolicyEntry],
    others: Mapping[str, str],
) -> dict[str, PolicyEntry]:
    """The policies of a mixture with a base, in weight order.

    Args:
      policies: each an adapter or the base itself.
      adapters: adapters, whose place is called `model`.
      others: texts of further policies, which are the base itself.
    Raises: ConfigError.
    """
    if base is None:
        raise ConfigError(
            "adapters need the model they adapt: add --base MODEL, or base: in the file"
        )
    if any(entry.model is not None for entry in policies.values()):
        raise ConfigError(
            "policies and base are both given; serve either full checkpoints (policies) or one "
            "base and its adapters (base, adapters; among policies {adapter: PATH} or "
            "{system: TEXT})"
        )
    twice = policies.keys() & adapters.keys()
    if twice:
        raise ConfigError(
            f"{min(twice)!r} is both among policies and among adapters; give each policy its own "
            "name"
        )
    bare = [name for name, entry in adapters.items() if not (entry.model or entry.adapter)]
    if bare:
        raise ConfigError(
            f"adapters.{bare[0]}.model is missing; a policy that is the base itself stands under "
            "policies"
        )
    table = {**policies, **adapters}
    table |= {name: PolicyEntry(system=text) for name, text in others.items()}
    if not table:
        raise ConfigError(
            "base needs at least one adapter, or a policy with a prompt of its own; add --adapter "
            "NAME=PATH or --system NAME=TEXT"
        )
    return table


def check_systems(
    systems: Mapping[str, str], members: Mapping[str, PolicyEntry], *, has_base: bool
) -> None:
    """Raises: ConfigError for the prompt of a policy that there is not."""
    unknown = [] if has_base else [name for name in systems if name not in members]
    if unknown:
        raise ConfigError(
            f"systems names {unknown[0]!r:.80}, which is no policy here; allowed: {listed(members)}"
        )
