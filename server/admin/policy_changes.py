"""The step of a change that chooses slots for added policies, before anybody can name them.

A policy that is only a prompt has a slot which is the base. The prompt travels with each request,
so prompts may change, and come into a slot of another, while requests use the slot.

Nothing here takes a policy away from a running request: a policy that comes, also in the place of
another of its name, gets a slot whose adapter no request uses. What fails leaves the policies in
force as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

from prefmix.mixing.spec import MixtureSpec
from prefmix.server.admin import in_place
from prefmix.server.admin.in_place import InPlace
from prefmix.server.admin.slot_filling import SlotFilling
from prefmix.server.admin.slot_room import (
    NoSlotsError,
    check_prompts,
    check_room,
    in_words,
    slots_of,
    taken_slots,
)
from prefmix.server.admin.two_phase_commit import NotAcceptedError, TellAll
from prefmix.server.slots.engine_slots import EngineSlots
from prefmix.server.slots.policies_folder import PoliciesFolder, PoliciesFolderError
from prefmix.server.slots.policy_set import CurrentPolicies, PolicySet
from prefmix.weights.store.added import AddedPolicies, AddedPolicy, lacking_slots

CheckAdapter = Callable[[str, Path], None]
"""Checks the files beside an adapter, by its policy's name and its folder, in a thread; raises
PolicyRefusedError."""

CheckTexts = Callable[[Mapping[str, str]], Awaitable[None]]
"""Checks system texts by policy; raises PolicyRefusedError for one that cannot be served."""

WAIT_S = 5.0
"""Seconds that a policy waits for a slot which running requests still use; then 503."""

_LOGGER = logging.getLogger("prefmix.faults")


class FullCheckpointError(ValueError):
    """A full checkpoint that is to come into a running server, which takes none."""

    def __init__(self) -> None:
        super().__init__(
            "a running server takes no full checkpoint, neither as a new policy nor in the place "
            "of one: vLLM keeps packed, joined and derived copies of parameters, which another "
            "load may leave as they were without a word, and has no way back from half a load; "
            "start a server with it, or serve a base and add adapters"
        )


class ManifestOwnsError(ValueError):
    """A change of the added policies that the manifest decides on."""


class PolicyChanges:
    """The slots of a server, as one API process changes them."""

    def __init__(
        self,
        current: CurrentPolicies,
        slots: EngineSlots,
        folder: PoliciesFolder | None,
        *,
        check_texts: CheckTexts,
        check_adapter: CheckAdapter | None = None,
        wait_s: float = WAIT_S,
        drain_s: float = in_place.WAIT_S,
        manifest: Path | None = None,
    ) -> None:
        """Args:
        current: the policies that requests read.
        slots: the engines'.
        folder: where adapters may lie; None for a server that takes none.
        check_texts: a start's check of system texts.
        check_adapter: a start's check of tokenizers; None for none.
        wait_s: how long a policy that comes waits for requests to leave a slot, in seconds.
        drain_s: how long one waits that is to replace another in its slot.
        manifest: the file that alone decides on the added policies; None lets requests change them.
        """
        self.manifest = manifest
        self._drain_s = drain_s
        self._wait_s = wait_s
        self.current = current
        self._slots = slots
        self._filling = SlotFilling(current, slots, folder)
        self._check_texts = check_texts
        self._check_adapter = check_adapter

    @property
    def engine(self) -> MixtureSpec:
        """The engine's mixture."""
        return self.current.current.engine

    def check_owner(self) -> None:
        """Raises: ManifestOwnsError if requests cannot change the added policies."""
        if self.manifest is not None:
            raise ManifestOwnsError(
                f"the added policies of this server are those of its manifest {self.manifest}, and "
                "no request adds, replaces or removes one; change that file"
            )

    async def described(
        self,
        adapter: str | None,
        system: str | None = None,
        *,
        kv_cache: bool | None = None,
        model: str | None = None,
    ) -> AddedPolicy:
        """A policy with the hash of its adapter's files, if it has one.

        Args: kv_cache: as in AddedPolicy; None is true for prompts, and where any slot has a cache.
        Raises: NoSlotsError, PoliciesFolderError; FullCheckpointError for any `model`.
        """
        if model is not None:
            raise FullCheckpointError
        if system is not None:
            check_prompts(self.engine)
        if adapter is None:
            return AddedPolicy.of(system=system)
        found = await asyncio.to_thread(self._filling.folder.adapter, adapter)
        if kv_cache is None:
            kv_cache = system is not None or bool(slots_of(self.engine, kv_cache=True))
        return AddedPolicy.of(
            adapter=adapter, sha256=found.sha256, system=system, kv_cache=kv_cache
        )

    def check_own(self, slot: int) -> None:
        """Raises: NotAcceptedError if a request of this process uses a slot."""
        self._filling.check_own(slot)

    def check_unnamed(self, slot: int) -> None:
        """Raises: NotAcceptedError if a policy of this process is in a slot that is not held.

        A process that has missed a change has others in force than the one that makes the next.
        """
        if slot in self.current.held:
            return
        named = self.current.current.slots.items()
        if name := next((name for name, each in named if each == slot), None):
            raise NotAcceptedError(f"policy {name!r} is in slot {slot} there; try again")

    async def check_unused(self, name: str, tell_all: TellAll) -> None:
        """Raises: NotAcceptedError if a request of any process uses an added policy."""
        slot = self.current.current.slots.get(name)
        if slot is not None:
            self.check_own(slot)
            await tell_all({"kind": "unused", "slot": slot})

    @contextlib.asynccontextmanager
    async def provided(
        self, added: AddedPolicies, tell_all: TellAll, *, drain: bool = False
    ) -> AsyncIterator[PolicySet]:
        """Brings policies into slots, for a set of them that the block puts in force.

        Args: drain: true waits longer for requests, and replaces policies in their own slots where
            no other is free.
        Raises: as `provide`.
        """
        wait_s = self._drain_s if drain else self._wait_s
        places = InPlace(self.current, self._slots, tell_all, wait_s=wait_s)
        found: PolicySet | None = None
        try:
            found = await self.provide(added, tell_all, places, drain=drain)
            yield found
        finally:
            is_in_force = self.current.current is found
            await asyncio.shield(places.end() if is_in_force else places.undo())

    async def provide(
        self, added: AddedPolicies, tell_all: TellAll, places: InPlace, *, drain: bool = False
    ) -> PolicySet:
        """Brings policies into slots, for a set of them that is to come.

        Only one caller of all API processes at a time.
        Args:
          places: brings policies into slots of others that go.
          drain: true replaces policies in their own slots, too; false leaves these as they are.
        Raises: NoSlotsError, SlotsBusyError, PoliciesFolderError, PolicyRefusedError.
        """
        now = self.current.current
        coming = await self._coming(added)
        held = self.current.held
        self._check_room(added, coming, drain=drain)
        await self._check_new_texts(added)
        await self._check_adapters(added, coming)
        slots = {name: now.slots[name] for name in added if name not in coming}
        still_taken = taken_slots(now, added, coming, held)
        leaving = {
            slot: name for name, slot in now.slots.items() if name not in added and slot not in held
        }
        fits = {name: slots_of(self.engine, kv_cache=added[name].kv_cache) for name in coming}
        own_slots = {
            name: slot
            for name, slot in now.slots.items()
            if slot in still_taken and slot in fits.get(name, ())
        }
        for name in sorted(coming, key=own_slots.__contains__):  # those that need a slot first
            policy = added[name]
            left = [slot for slot in fits[name] if slot not in {*slots.values(), *still_taken}]
            if base := await self._filling.base_slots(left, policy):
                slots[name] = base[0]
            elif free := [slot for slot in left if slot not in leaving]:
                slots[name] = await self._filling.put(
                    name, policy, free, tell_all, wait_s=self._wait_s
                )
            else:
                slots[name] = slot = left[0] if left else own_slots[name]
                await self._filling.read(name, policy)  # a broken one disturbs nobody
                await places.begin(leaving.get(slot, name), slot)
                await self._filling.bring(slot, name, policy)
        return now.with_added(added, {name: slots[name] for name in added})

    async def try_out(self, added: AddedPolicies, *, drain: bool = False) -> None:
        """Makes the engines read the adapters that `provide` would bring, and forget them.

        Raises: as `provide`, but for slots in use.
        """
        coming = await self._coming(added)
        self._check_room(added, coming, drain=drain)
        await self._check_new_texts(added)
        await self._check_adapters(added, coming)
        for name in coming:
            await self._filling.read(name, added[name])
            if added[name].adapter is not None:
                await self._slots.drop()

    def _check_room(self, added: AddedPolicies, coming: list[str], *, drain: bool) -> None:
        """Raises: NoSlotsError."""
        check_room(
            self.current.current,
            added,
            coming,
            held=self.current.held,
            drain=drain,
            by_manifest=self.manifest is not None,
        )

    async def _coming(self, added: AddedPolicies) -> list[str]:
        """The policies whose content is in no slot that has their name.

        Raises: PoliciesFolderError if one that is there already has other files now.
        """
        now = self.current.current
        changed = [name for name, policy in added.items() if now.added.get(name) != policy]
        if not any(name in now.slots for name in changed):
            return changed
        keys = await self._slots.keys()
        coming = []
        for name in changed:
            policy = added[name]
            # Also if only its folder or prompt changes, or this process has missed a replacement.
            slot = now.slots.get(name)
            is_there = slot in slots_of(self.engine, kv_cache=policy.kv_cache)
            if slot is None or not is_there or keys[slot] != policy.sha256:
                coming.append(name)
            elif policy.adapter is not None:
                await asyncio.to_thread(self._filling.folder.unchanged, policy)
        return coming

    async def restore(self, added: AddedPolicies) -> PolicySet:
        """Brings a start's policies into slots, by their order, and into force.

        Another API process may have brought them.
        With a manifest, which brings other adapters in their place, those whose files have gone or
        changed meanwhile leave their slots empty, and requests that name them have to come again.
        Raises: as `provide`.
        """
        if (flags := lacking_slots(added, self.engine)) is not None:
            raise NoSlotsError(
                f"the weights store has {len(added)} added policies, and this server "
                f"{in_words(self.engine)}; start it with {flags} or more"
            )
        await self._check_new_texts(added)
        keys = await self._slots.keys() if added else []
        rooms = {kind: iter(slots_of(self.engine, kv_cache=kind)) for kind in (True, False)}
        slots = {name: next(rooms[policy.kv_cache]) for name, policy in added.items()}
        lost = []
        for name, policy in added.items():
            if keys[slots[name]] != policy.sha256:
                try:
                    await self._filling.bring(slots[name], name, policy)
                except PoliciesFolderError as error:
                    if self.manifest is None:
                        raise
                    _LOGGER.warning(
                        "policy %r is refused until its adapter is there as it was, or the "
                        "manifest brings another: %s",
                        name,
                        error,
                    )
                    lost.append(slots[name])
        found = self.current.current.with_added(added, slots)
        self.current.swap(found)
        for slot in lost:
            self.current.hold(slot, is_empty=True)
        return found

    async def bring_missing(self, tell_all: TellAll) -> None:
        """Brings adapters that a start could not read into the slots that wait for them.

        Only one caller of all API processes at a time.
        Raises: CommitError, PoliciesFolderError, PolicyRefusedError.
        """
        now = self.current.current
        for name, slot in now.slots.items():
            if self.current.held_name(frozenset({slot})) is None:
                continue
            if (await self._slots.keys())[slot] != now.added[name].sha256:
                await self._filling.bring(slot, name, now.added[name])
            await tell_all({"kind": "release", "slot": slot})
            self.current.release(slot)

    async def _check_new_texts(self, added: AddedPolicies) -> None:
        """Raises: NoSlotsError, PolicyRefusedError for a text that is not in force yet."""
        now = self.current.current.prompts.systems
        texts = {name: each.system for name, each in added.items() if each.system is not None}
        if coming := {name: text for name, text in texts.items() if now.get(name) != text}:
            check_prompts(self.engine)
            await self._check_texts(coming)

    async def _check_adapters(self, added: AddedPolicies, coming: list[str]) -> None:
        """Raises: PoliciesFolderError, PolicyRefusedError for what is beside an adapter's files."""
        for name in coming:
            adapter = added[name].adapter
            if adapter is not None and self._check_adapter is not None:
                folder = await asyncio.to_thread(self._filling.folder.confined, adapter)
                await asyncio.to_thread(self._check_adapter, name, folder)
