"""Specification of a mixture: the policies, the optional reference, the weight space, and how far
the members' vocabularies may differ.

This module needs neither vLLM nor torch. The spec is written into the engine's model config
(`to_dict`) and read back in every engine process (`from_dict`), so all of them agree on names and
order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from prefmix.mixing.shown_value import shown
from prefmix.mixing.ways_to_mix import Mixing, MixingError, check_mixing

WeightSpace = Literal["simplex", "affine"]
WEIGHT_SPACES: tuple[str, ...] = get_args(WeightSpace)

VocabularyRule = Literal["same", "prefix", "common"]
VOCABULARY_RULES: tuple[str, ...] = get_args(VocabularyRule)

# Names travel in JSON keys, metric labels, headers and `MODEL@PROFILE`: no blank, "@", "=" or ",".
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class SpecError(ValueError):
    """An impossible mixture: a duplicate or malformed name, no policy, an unknown weight space."""


def check_name(name: object, *, what: str) -> str:
    """Returns `name` if it can name a policy or profile; raises SpecError otherwise."""
    if isinstance(name, str) and NAME_PATTERN.fullmatch(name):
        return name
    raise SpecError(
        f"{what} name {shown(name)} is not allowed: use 1 to 64 letters, digits, '_', '-' or '.', "
        "beginning with a letter or digit"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """One language model as a next-token distribution."""

    name: str
    """The name that requests and profiles use."""
    model: str
    """A local folder or a hub id, in Hugging Face layout; in PEFT's for an adapter of a base."""
    revision: str | None = None
    """Hub revision; None is the default branch. Has no meaning for a folder."""
    hf_overrides: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Entries of the model's config.json that are to count instead of the file's, JSON-ready."""

    def __post_init__(self) -> None:
        check_name(self.name, what="policy")
        if not isinstance(self.model, str) or not self.model:
            raise SpecError(
                f"policy {self.name!r} has no model: got {self.model!r}, "
                "give a local folder or a hub id"
            )
        _check_overrides(self.name, self.hf_overrides)


def _check_overrides(name: str, overrides: object) -> None:
    wrong = f"policy {name!r}: hf_overrides "
    if not isinstance(overrides, Mapping) or not _is_json(dict(overrides)):
        raise SpecError(
            f"{wrong}is {shown(overrides)}; expected keys of config.json with JSON values"
        )
    taken = OVERRIDDEN_KEYS & overrides.keys()
    if taken:
        raise SpecError(f"{wrong}sets {min(taken)!r}, which prefmix sets itself; leave it out")


def _is_json(value: object) -> bool:
    """True if JSON gives back the value that it is given."""
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError):
        return False


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureSpec:
    """K policies, an optional reference, and the set that their weights lie in.

    *Members* are the policies in their given order, then the reference if there is one. A weight
    vector has one number per member (M numbers) and sums to 1.
    """

    policies: tuple[Policy, ...]
    reference: Policy | None = None
    """The policy that the others were aligned from. On the simplex it is one more member, with
    weight 0 unless a request names it. In the affine space it takes 1 minus the sum of the named
    weights."""
    weight_space: WeightSpace = "simplex"
    base: str | None = None
    """None if every member is a full checkpoint. Otherwise a model whose parameters all members
    share (prefmix.mixing.models.shared_trunk): the policies are LoRA adapters of it or that model
    itself, as the reference is, if there is one."""
    base_revision: str | None = None
    """Hub revision of `base`."""
    mixing: Mixing = "logits"
    """The way to mix of requests that name none."""
    vocabulary: VocabularyRule = "prefix"
    """The rule on vocabularies that differ. Tokens that are not the same to all members
    are never drawn. same: not at all. prefix: some members may have added tokens behind the others'
    last one. common: added tokens may differ anywhere."""
    defaults_from: str | None = None
    """The member whose files give tokenizer, chat template, end tokens and defaults of generation;
    None: the first policy, or the base."""
    has_prompts: bool = False
    """True if requests may give the policies prompts of their own
    (prefmix.mixing.prompts.request_heads)."""
    prompts_sha256: str | None = None
    """Hash of the prompts that policies have from the configuration; None if none has one. Profiles
    are made for policies with these prompts."""
    adapter_slots: int = 0
    """Number of further members that are the base until an adapter is put into them
    (prefmix.mixing.slots)."""
    max_adapter_rank: int = 0
    """Largest rank of a linear layer that a slot has room for; 0 without slots."""
    slots_without_kv: int = 0
    """Number of the slots, the last ones, that have no KV cache. Their members predict nothing by
    themselves: they have weight only where parameters are mixed."""

    def __post_init__(self) -> None:
        if not self.policies:
            raise SpecError(
                "a mixture needs at least one policy, got none; add --policy NAME=MODEL"
            )
        if self.weight_space not in WEIGHT_SPACES:
            raise SpecError(
                f"weight_space is {self.weight_space!r}; allowed: {', '.join(WEIGHT_SPACES)}"
            )
        if self.vocabulary not in VOCABULARY_RULES:
            raise SpecError(
                f"vocabulary is {self.vocabulary!r}; allowed: {', '.join(VOCABULARY_RULES)}"
            )
        try:
            check_mixing(self.mixing, has_base=self.base is not None)
        except MixingError as error:
            raise SpecError(f"mixing: {error}") from None
        self._check_slots()
        seen: set[str] = set()
        for name in self.member_names:
            if name in seen:
                raise SpecError(f"two policies are named {name!r}; give each its own name")
            seen.add(name)
        if self.defaults_from is not None and self.defaults_from not in seen:
            raise SpecError(
                f"defaults_from is {self.defaults_from!r:.80}, which is no policy here; allowed: "
                f"{', '.join(self.member_names)}"
            )
        if self.base is None:
            if self.base_revision is not None:
                raise SpecError("base_revision is given without a base; name the base model")
        elif self.reference is not None and (self.reference.model, self.reference.revision) != (
            self.base,
            self.base_revision,
        ):
            raise SpecError(
                f"reference {self.reference.name!r} is {self.reference.model!r}, but with a base "
                f"the reference is the base itself: give {self.base!r}, or no reference"
            )
        for member in self.members if self.base is not None else ():
            if member.hf_overrides:
                raise SpecError(
                    f"policy {member.name!r} has hf_overrides, but runs in the layers of the base, "
                    "which have one config; give overrides of the base as vLLM's --hf-overrides, "
                    "or hf_overrides: under engine:"
                )

    def _check_slots(self) -> None:
        for name, value in (
            ("adapter_slots", self.adapter_slots),
            ("max_adapter_rank", self.max_adapter_rank),
            ("slots_without_kv", self.slots_without_kv),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise SpecError(f"{name} is {shown(value)}; expected a whole number, 0 or more")
        if bool(self.adapter_slots) != bool(self.max_adapter_rank):
            raise SpecError(
                f"adapter_slots is {self.adapter_slots} and max_adapter_rank "
                f"{self.max_adapter_rank}; give both above 0, or neither"
            )
        if self.slots_without_kv > self.adapter_slots:
            raise SpecError(
                f"slots_without_kv is {self.slots_without_kv}, but there are {self.adapter_slots} "
                "adapter_slots in all; give as many at most"
            )
        if self.adapter_slots and self.base is None:
            raise SpecError(
                "adapter_slots hold adapters of a base, and these policies are full checkpoints; "
                "serve a base and adapters, or leave the slots out"
            )

    @property
    def checkpoints(self) -> tuple[Policy, ...]:
        """The full models behind the members: one for each, or the one base that all share."""
        if self.base is None:
            return self.members
        return (Policy(name="base", model=self.base, revision=self.base_revision),)

    @property
    def adapters(self) -> tuple[Policy, ...]:
        """The policies that are adapters of the base, in weight order; none without a base."""
        first_slot = self.num_members - self.adapter_slots
        return tuple(self.members[each] for each in self.adapter_members if each < first_slot)

    @property
    def adapter_members(self) -> tuple[int, ...]:
        """The index among the members of each adapter and each slot, ascending. The other members
        of a mixture with a base are that model itself."""
        if self.base is None:
            return ()
        base = (self.base, self.base_revision)
        own = (
            index
            for index, policy in enumerate(self.policies)
            if (policy.model, policy.revision) != base
        )
        return (*own, *self.slot_members)

    @property
    def slot_members(self) -> range:
        """The index among the members of each slot: the last ones."""
        return range(self.num_members - self.adapter_slots, self.num_members)

    @property
    def defaults(self) -> Policy:
        """The model whose files give tokenizer, chat template, end tokens and the defaults of
        generation; of an adapter's missing files the base's count."""
        named = {each.name: each for each in (*self.checkpoints, *self.adapters)}
        return named.get(self.defaults_from or "", self.checkpoints[0])

    @property
    def members(self) -> tuple[Policy, ...]:
        """Every model the engine runs, in weight order: policies, reference, slots."""
        own = self.policies if self.reference is None else (*self.policies, self.reference)
        return own + self._slots

    @property
    def _slots(self) -> tuple[Policy, ...]:
        return tuple(
            Policy(name=f"adapter-slot-{slot}", model=self.base or "", revision=self.base_revision)
            for slot in range(self.adapter_slots)
        )

    @property
    def member_names(self) -> tuple[str, ...]:
        """The names of `members`, in weight order."""
        return tuple(member.name for member in self.members)

    @property
    def policy_names(self) -> tuple[str, ...]:
        """The names of `policies`: the members without the reference."""
        return tuple(policy.name for policy in self.policies)

    @property
    def num_members(self) -> int:
        """M, the length of a weight vector."""
        return len(self.policies) + (self.reference is not None) + self.adapter_slots

    @property
    def num_kv_members(self) -> int:
        """Number of the members, the first ones, that have a KV cache: those that run where logits
        are mixed."""
        return self.num_members - self.slots_without_kv

    def has_kv(self, slot: int) -> bool:
        """True if a slot has a KV cache."""
        return slot < self.adapter_slots - self.slots_without_kv

    @property
    def uniform_weights(self) -> tuple[float, ...]:
        """1/K for each policy, 0 for reference and slots; used when a request gives no weights."""
        num_policies = len(self.policies)
        return (1.0 / num_policies,) * num_policies + (0.0,) * (self.num_members - num_policies)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; `from_dict` is its inverse."""

        def policy_dict(policy: Policy) -> dict[str, Any]:
            entry: dict[str, Any] = {
                "name": policy.name,
                "model": policy.model,
                "revision": policy.revision,
            }
            if policy.hf_overrides:
                entry["hf_overrides"] = dict(policy.hf_overrides)
            return entry

        return {
            "policies": [policy_dict(policy) for policy in self.policies],
            "reference": None if self.reference is None else policy_dict(self.reference),
            "weight_space": self.weight_space,
            "base": self.base,
            "base_revision": self.base_revision,
            "mixing": self.mixing,
            "vocabulary": self.vocabulary,
            "defaults_from": self.defaults_from,
            "has_prompts": self.has_prompts,
            "prompts_sha256": self.prompts_sha256,
            "adapter_slots": self.adapter_slots,
            "max_adapter_rank": self.max_adapter_rank,
            "slots_without_kv": self.slots_without_kv,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MixtureSpec:
        """Builds a spec from `to_dict`'s form; raises SpecError naming what is wrong."""
        allowed = [field.name for field in fields(cls)]
        unknown = set(data) - set(allowed)
        if unknown:
            raise SpecError(f"unknown mixture key {min(unknown)!r}; allowed: {', '.join(allowed)}")

        def policy(item: object) -> Policy:
            if not isinstance(item, Mapping) or not {"name", "model"} <= set(item) <= {
                "name",
                "model",
                "revision",
                "hf_overrides",
            }:
                raise SpecError(
                    f"a policy is {shown(item)}; expected an object with name, model and maybe "
                    "revision and hf_overrides"
                )
            return Policy(**item)

        policies = data.get("policies")
        if not isinstance(policies, list):
            raise SpecError(f"policies is {shown(policies)}; expected a list of objects")
        reference = data.get("reference")
        return cls(
            policies=tuple(policy(item) for item in policies),
            reference=None if reference is None else policy(reference),
            weight_space=data.get("weight_space", "simplex"),
            base=data.get("base"),
            base_revision=data.get("base_revision"),
            mixing=data.get("mixing", "logits"),
            vocabulary=data.get("vocabulary", "prefix"),
            defaults_from=data.get("defaults_from"),
            has_prompts=data.get("has_prompts", False),
            prompts_sha256=data.get("prompts_sha256"),
            adapter_slots=data.get("adapter_slots", 0),
            max_adapter_rank=data.get("max_adapter_rank", 0),
            slots_without_kv=data.get("slots_without_kv", 0),
        )


ARCHITECTURE = "LogLinearMixtureForCausalLM"
"""The name under which the composite of full checkpoints is registered with vLLM."""

TRUNK_ARCHITECTURE = "SharedTrunkMixtureForCausalLM"
"""The name under which the composite of one base and its adapters is registered with vLLM."""

CONFIG_KEY = "prefmix"
"""The key of the model config (`--hf-overrides`) that holds `MixtureSpec.to_dict()`."""

OVERRIDDEN_KEYS = frozenset({"architectures", CONFIG_KEY})
"""The keys of vLLM's `--hf-overrides` that make the composite; no user may set them."""


def hf_overrides(spec: MixtureSpec) -> dict[str, Any]:
    """The value of vLLM's `--hf-overrides` (JSON-ready) that makes a model config a mixture's.

    Use it together with `--model <spec.checkpoints[0].model>`.
    """
    architecture = ARCHITECTURE if spec.base is None else TRUNK_ARCHITECTURE
    first = spec.checkpoints[0].hf_overrides
    return {**first, "architectures": [architecture], CONFIG_KEY: spec.to_dict()}


def with_overrides(spec: MixtureSpec, overrides: Mapping[str, Any]) -> MixtureSpec:
    """The mixture of full checkpoints with overrides for every member, over which each one's own
    prevail."""

    def overridden(policy: Policy) -> Policy:
        return replace(policy, hf_overrides={**overrides, **policy.hf_overrides})

    return replace(
        spec,
        policies=tuple(map(overridden, spec.policies)),
        reference=None if spec.reference is None else overridden(spec.reference),
    )
