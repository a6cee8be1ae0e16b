"""The bringing of one policy into one slot of the engines, from the folder of adapters.

prefmix.server.admin.policy_changes chooses the slots.
"""

from __future__ import annotations

import asyncio
import time

from prefmix.server.admin.in_place import SlotsBusyError
from prefmix.server.admin.slot_room import NoSlotsError
from prefmix.server.admin.two_phase_commit import NotAcceptedError, TellAll
from prefmix.server.slots.engine_slots import EngineSlots
from prefmix.server.slots.policies_folder import PoliciesFolder, PoliciesFolderError
from prefmix.server.slots.policy_set import CurrentPolicies
from prefmix.server.telemetry.metrics import policy_came
from prefmix.weights.store.added import AddedPolicy

_LOOK_S = 0.05


class SlotFilling:
    """Slots of a server, as one API process fills them."""

    def __init__(
        self, current: CurrentPolicies, slots: EngineSlots, folder: PoliciesFolder | None
    ) -> None:
        """Args:
        current: the policies that requests read.
        slots: the engines'.
        folder: where adapters may lie; None for a server that takes none.
        """
        self._current = current
        self._slots = slots
        self._folder = folder

    @property
    def folder(self) -> PoliciesFolder:
        """The folder of adapters. Raises: NoSlotsError for a server that takes none."""
        if self._folder is None or not self._current.current.engine.adapter_slots:
            raise NoSlotsError(
                "this server takes no further adapters; start it with --adapter-slots N and "
                "--policies-dir FOLDER"
            )
        return self._folder

    def check_own(self, slot: int) -> None:
        """Raises: NotAcceptedError if a request of this process uses a slot."""
        if users := self._current.num_users(slot):
            raise NotAcceptedError(
                f"requests under way ({users} in one process) use the policy; try again when they "
                "have ended, or remove it with drain=true, which lets them end"
            )

    async def read(self, name: str, policy: AddedPolicy) -> None:
        """Makes the engines read and check the adapter of a policy that has one."""
        if policy.adapter is not None:
            folder = await asyncio.to_thread(self.folder.unchanged, policy)
            await self._slots.read(name, str(folder))

    async def base_slots(self, slots: list[int], policy: AddedPolicy) -> list[int]:
        """The slots that a prompt may have while requests use them, as they are the base."""
        if policy.adapter is not None:
            return []
        keys = await self._slots.keys()
        return [slot for slot in slots if keys[slot] is None]

    async def put(
        self,
        name: str,
        policy: AddedPolicy,
        free: list[int],
        tell_all: TellAll,
        *,
        wait_s: float,
    ) -> int:
        """Brings a policy into one of the slots that none has, once requests have left it.

        Args: wait_s: how long it waits for them, in seconds.
        Returns: the slot.
        Raises: SlotsBusyError; as `bring`.
        """
        deadline = time.monotonic() + wait_s
        while True:
            for slot in free:
                try:
                    self.check_own(slot)
                    if not await self._is_shared(slot, policy, tell_all):
                        await tell_all({"kind": "unused", "slot": slot})
                        await self.bring(slot, name, policy)
                except NotAcceptedError:
                    continue
                return slot
            if time.monotonic() >= deadline:
                break
            await asyncio.sleep(_LOOK_S)
        raise SlotsBusyError(
            "requests under way still use the policies that left the free slots; try again when "
            "they have ended"
        )

    async def _is_shared(self, slot: int, policy: AddedPolicy, tell_all: TellAll) -> bool:
        """True for a slot in which another process has this very policy; false for a free one.

        Raises: NotAcceptedError if another process has another policy in the slot.
        """
        try:
            await tell_all({"kind": "unnamed", "slot": slot})
        except NotAcceptedError:
            if (await self._slots.keys())[slot] == policy.sha256:
                return True
            raise
        return False

    async def bring(self, slot: int, name: str, policy: AddedPolicy) -> None:
        """Makes a policy the content of a slot, in all engines.

        Raises: NoSlotsError, PoliciesFolderError, PolicyRefusedError.
        """
        if policy.adapter is None:
            policy_came(await self._slots.clear(slot))
            return
        folder = self.folder
        path = await asyncio.to_thread(folder.unchanged, policy)
        assert policy.sha256 is not None, "adapters have a hash"
        policy_came(await self._slots.put(slot, name, str(path), key=policy.sha256))
        # The engine has read the files by itself, so they must be the same after it, too.
        try:
            await asyncio.to_thread(folder.unchanged, policy)
        except PoliciesFolderError:
            await self._slots.clear(slot)  # its content is not what its key says
            raise
