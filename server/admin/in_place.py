"""The replacement of policies in the slots that they have, where no other slot is free: by others
of their names, or by what comes in the same change in which they go.

For that time new requests that name such a policy are refused, and those under way end. What the
slot held is kept aside until the change is in force; a change that fails puts it back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from prefmix.server.admin.two_phase_commit import CommitError, Message, NotAcceptedError, TellAll
from prefmix.server.slots.engine_slots import EngineSlots, PolicyRefusedError
from prefmix.server.slots.policy_set import CurrentPolicies

WAIT_S = 60.0
"""Seconds that requests under way have to end; then the policy stays, and the answer is 503. Only
changes that ask for it wait so long."""

_RESTORE_S = 5.0
"""Seconds in which a slot whose change has failed must get its content back."""

_LOOK_S = 0.05

_LOGGER = logging.getLogger("prefmix.faults")


class SlotsBusyError(ValueError):
    """Running requests still use the slots that a change needs."""


class InPlace:
    """The slots of one change whose content is replaced."""

    def __init__(
        self, current: CurrentPolicies, slots: EngineSlots, tell_all: TellAll, *, wait_s: float
    ) -> None:
        """Args:
        current: the policies that requests of this process read.
        slots: the engines'.
        wait_s: seconds that requests have to end.
        """
        self._current = current
        self._slots = slots
        self._tell_all = tell_all
        self._wait_s = wait_s
        self._held: list[int] = []
        self._kept: dict[int, str | None] = {}

    async def begin(self, name: str, slot: int) -> None:
        """Waits until no request uses a slot, which none may from now on, and keeps its content.

        Args: name: the policy in it.
        Raises: SlotsBusyError, CommitError.
        """
        self._held.append(slot)
        self._current.hold(slot)
        await self._tell_all({"kind": "hold", "slot": slot})
        unused: Message = {"kind": "unused", "slot": slot}
        deadline = time.monotonic() + self._wait_s
        while not await self._is_kept(slot, unused):
            if time.monotonic() >= deadline:
                raise SlotsBusyError(
                    f"requests under way still use policy {name!r} after {self._wait_s:g} s, and "
                    "no slot is free beside its own; try again when they have ended"
                )
            await asyncio.sleep(_LOOK_S)

    async def _is_kept(self, slot: int, unused: Message) -> bool:
        """Keeps a slot's content if no request uses it; false if one does."""
        if self._current.num_users(slot):
            return False
        try:
            await self._tell_all(unused)
            key = (await self._slots.keys())[slot]
            await self._slots.keep(slot)  # refused while a request that has ended leaves the engine
        except (NotAcceptedError, PolicyRefusedError):
            return False
        self._kept[slot] = key
        return True

    async def undo(self) -> None:
        """Puts back what the slots held, and lets requests use them again.

        A slot that cannot be given its content back stays closed until a change brings another.
        """
        restored = {slot: await self._is_restored(slot, key) for slot, key in self._kept.items()}
        for slot in self._held:
            message: Message = {"kind": "release", "slot": slot}
            if restored.get(slot, True):
                self._current.release(slot)
            else:
                self._current.hold(slot, is_empty=True)
                message = {"kind": "hold", "slot": slot, "is_empty": True}
            with contextlib.suppress(CommitError):  # whoever cannot hear it follows later
                await self._tell_all(message)
        await self.end()

    async def _is_restored(self, slot: int, key: str | None) -> bool:
        """Gives a slot its content back; false if the engines cannot."""
        deadline = time.monotonic() + _RESTORE_S
        while True:
            try:
                await self._slots.restore(slot, key)
            except PolicyRefusedError as error:  # also while a request of the check leaves it
                if time.monotonic() >= deadline:
                    _LOGGER.error(
                        "slot %d did not get its policy back, which is refused until another "
                        "adapter takes its place: %s",
                        slot,
                        error,
                    )
                    return False
                await asyncio.sleep(_LOOK_S)
            else:
                return True

    async def end(self) -> None:
        """Forgets what the slots held."""
        if self._kept:
            await self._slots.drop()
