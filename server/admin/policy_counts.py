"""The count of the changes of policies, by how they end."""

from __future__ import annotations

from collections.abc import Awaitable

from prefmix.server.admin.in_place import SlotsBusyError
from prefmix.server.admin.schemas import ChangeAnswer
from prefmix.server.admin.two_phase_commit import CommitError
from prefmix.server.telemetry.policy_metrics import Trigger, count_change
from prefmix.weights.store.errors import StaleVersionError, StoreBusyError

CONFLICTS = (StaleVersionError, StoreBusyError, CommitError, SlotsBusyError)
"""Errors that say nothing against a policy: the same change may be made later."""


async def counted(change: Awaitable[ChangeAnswer], trigger: Trigger) -> ChangeAnswer:
    """Makes a change of the policies, and counts it."""
    try:
        answer = await change
    except ValueError as error:
        count_change(trigger, "conflict" if isinstance(error, CONFLICTS) else "refused")
        raise
    count_change(trigger, "ok" if answer.changed else "unchanged")
    return answer
