"""The step of a change that brings added policies into slots, before anybody can name them.

Nothing here takes a policy away from a running request: a policy that comes, also in the place of
another of its name, gets a slot that no request uses. What fails leaves the policies in force as
they are.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from prefmix.mixing.spec import MixtureSpec
from prefmix.server.admin.two_phase_commit import Message, NotAcceptedError
from prefmix.server.slots.engine_slots import EngineSlots
from prefmix.server.slots.policies_folder import PoliciesFolder
from prefmix.server.slots.policy_set import CurrentPolicies, PolicySet
from prefmix.server.telemetry.metrics import policy_came
from prefmix.weights.store.added import AddedPolicies, AddedPolicy

TellAll = Callable[[Message], Awaitable[None]]
"""Sends a message to every other API process; raises CommitError unless all accept it."""


WAIT_S = 5.0
"""Seconds that a policy waits for a slot which running requests still use; then 503."""

_LOOK_S = 0.05


class NoSlotsError(ValueError):
    """The server has no slots, or none that is free."""


class SlotsBusyError(ValueError):
    """All slots without a policy are still used by running requests."""


class PolicyChanges:
    """The slots of a server, as one API process changes them."""

    def __init__(
        self,
        current: CurrentPolicies,
        slots: EngineSlots,
        folder: PoliciesFolder | None,
        *,
        wait_s: float = WAIT_S,
    ) -> None:
        """Args:
        current: the policies that requests read.
        slots: the engines'.
        folder: where adapters may lie; None for a server that takes none.
        wait_s: how long a policy that comes waits for requests to leave a slot, in seconds.
        """
        self._wait_s = wait_s
        self.current = current
        self._slots = slots
        self._folder = folder

    @property
    def engine(self) -> MixtureSpec:
        """The engine's mixture."""
        return self.current.current.engine

    async def described(self, adapter: str) -> AddedPolicy:
        """An adapter with the hash of its files. Raises: NoSlotsError, PoliciesFolderError."""
        return await asyncio.to_thread(self._needed_folder().adapter, adapter)

    def check_own(self, slot: int) -> None:
        """Raises: NotAcceptedError if a request of this process uses a slot."""
        if users := self.current.num_users(slot):
            raise NotAcceptedError(
                f"requests under way ({users} in one process) use the policy; try again when they "
                "have ended, or remove it with drain=true, which lets them end"
            )

    async def check_unused(self, name: str, tell_all: TellAll) -> None:
        """Raises: NotAcceptedError if a request of any process uses an added policy."""
        slot = self.current.current.slots.get(name)
        if slot is not None:
            self.check_own(slot)
            await tell_all({"kind": "unused", "slot": slot})

    async def provide(self, added: AddedPolicies, tell_all: TellAll) -> PolicySet:
        """Brings adapters into slots, for a set of policies that is to come.

        Only one caller of all API processes at a time.
        Raises: NoSlotsError, SlotsBusyError, PoliciesFolderError, PolicyRefusedError.
        """
        now = self.current.current
        slots = {
            name: now.slots[name] for name, policy in added.items() if now.added.get(name) == policy
        }
        coming = [name for name in added if name not in slots]
        if len(added) > self.engine.adapter_slots:
            raise NoSlotsError(
                f"{len(added)} added policies need as many slots, and this server has "
                f"{self.engine.adapter_slots}; remove one, or start it with more --adapter-slots"
            )
        for name in coming:
            taken = {*slots.values(), *now.slots.values()}
            slots[name] = await self._put(name, added[name], taken, tell_all)
        return PolicySet.of(self.engine, added, {name: slots[name] for name in added})

    async def try_out(self, added: AddedPolicies) -> None:
        """Makes the engines read the adapters that `provide` would bring, and forget them.

        Raises: as `provide`, but for slots in use.
        """
        for name, policy in added.items():
            if self.current.current.added.get(name) != policy:
                folder = await asyncio.to_thread(self._needed_folder().unchanged, policy)
                await self._slots.read(name, str(folder))
                await self._slots.drop()

    async def restore(self, added: AddedPolicies) -> PolicySet:
        """Brings a start's policies into slots, by their order; another API process may have.

        Raises: as `provide`.
        """
        if len(added) > self.engine.adapter_slots:
            raise NoSlotsError(
                f"the weights store has {len(added)} added policies, and this server "
                f"{self.engine.adapter_slots} slots; start it with --adapter-slots {len(added)} or "
                "more"
            )
        keys = await self._slots.keys() if added else []
        for slot, (name, policy) in enumerate(added.items()):
            if keys[slot] != policy.sha256:
                await self._bring(slot, name, policy)
        return PolicySet.of(self.engine, added, {name: slot for slot, name in enumerate(added)})

    async def _put(self, name: str, policy: AddedPolicy, taken: set[int], tell_all: TellAll) -> int:
        free = [slot for slot in range(self.engine.adapter_slots) if slot not in taken]
        if not free:
            raise NoSlotsError(
                f"all {self.engine.adapter_slots} slots of this server hold policies, and a policy "
                "that comes or replaces another needs a free one: remove one, or start the server "
                "with more --adapter-slots"
            )
        deadline = time.monotonic() + self._wait_s
        while True:
            for slot in free:
                try:
                    self.check_own(slot)
                    await tell_all({"kind": "unused", "slot": slot})
                except NotAcceptedError:
                    continue
                await self._bring(slot, name, policy)
                return slot
            if time.monotonic() >= deadline:
                break
            await asyncio.sleep(_LOOK_S)
        raise SlotsBusyError(
            "requests under way still use the policies that left the free slots; try again when "
            "they have ended"
        )

    async def _bring(self, slot: int, name: str, policy: AddedPolicy) -> None:
        folder = self._needed_folder()
        path = await asyncio.to_thread(folder.unchanged, policy)
        policy_came(await self._slots.put(slot, name, str(path), key=policy.sha256))
        # The engine has read the files by itself, so they must be the same after it, too.
        await asyncio.to_thread(folder.unchanged, policy)

    def _needed_folder(self) -> PoliciesFolder:
        if self._folder is None or not self.engine.adapter_slots:
            raise NoSlotsError(
                "this server takes no further policies; start it with --adapter-slots N and "
                "--policies-dir FOLDER"
            )
        return self._folder
