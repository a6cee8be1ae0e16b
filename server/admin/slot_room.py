"""The room of a server for policies that come: slots of two kinds, and prompts."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from prefmix.mixing.name_list import listed
from prefmix.mixing.spec import MixtureSpec
from prefmix.server.slots.policy_set import PolicySet
from prefmix.weights.store.added import AddedPolicies, lacking_slots


class NoSlotsError(ValueError):
    """The server has no slots of the kind, or none that is free."""


def slots_of(engine: MixtureSpec, *, kv_cache: bool) -> list[int]:
    """The slots with a KV cache, or those without."""
    return [slot for slot in range(engine.adapter_slots) if engine.has_kv(slot) == kv_cache]


def taken_slots(
    now: PolicySet, added: AddedPolicies, coming: Collection[str], held: frozenset[int]
) -> frozenset[int]:
    """The slots of policies in force that a change leaves to them.

    A policy that goes leaves its slot to what comes, and so does one that comes with other content
    if the slot is held, as it serves nobody then.
    Args: as of `check_room`.
    """
    return frozenset(
        slot
        for name, slot in now.slots.items()
        if name in added and (slot not in held or name not in coming)
    )


def check_room(
    now: PolicySet,
    added: AddedPolicies,
    coming: Sequence[str],
    *,
    held: frozenset[int],
    drain: bool,
    by_manifest: bool,
) -> None:
    """Checks that there is a slot for each policy, and for each that comes.

    Args:
      now: the policies in force.
      coming: those of `added` that are in no slot yet.
      held: the slots that no new request may use before the change.
      drain: true counts the slots of policies that are replaced as free.
      by_manifest: true proposes what a manifest can do, not a request.
    Raises: NoSlotsError.
    """
    if (flags := lacking_slots(added, now.engine)) is not None:
        without = sum(not each.kv_cache for each in added.values())
        kinds = f", {without} of them without KV cache" if without else ""
        lacks_kv = without <= now.engine.slots_without_kv
        way = ""
        if slots_of(now.engine, kv_cache=lacks_kv):
            with_kv = f" {'with' if lacks_kv else 'without'} a KV cache"
            way = "name fewer" if by_manifest else "remove one"
            way += f"{with_kv if now.engine.slots_without_kv else ''}, or "
        raise NoSlotsError(
            f"{len(added)} added policies need as many slots{kinds}, and this server has "
            f"{in_words(now.engine, kinds=bool(without))}; {way}start it with {flags} or more"
        )
    every_taken = taken_slots(now, added, coming, held)
    for kv_cache in (True, False):
        slots = slots_of(now.engine, kv_cache=kv_cache)
        taken = every_taken.intersection(slots)
        total = len(slots)
        names = [name for name in coming if added[name].kv_cache == kv_cache]
        replaced = [name for name in names if now.slots.get(name) in taken]
        if len(names) - (len(replaced) if drain else 0) > total - len(taken):
            kind, flag = "", "--adapter-slots"
            if now.engine.slots_without_kv:
                kind = " with a KV cache" if kv_cache else " without KV cache"
                flag = flag if kv_cache else "--adapter-slots-without-kv"
            way = "remove one, "
            if by_manifest:
                those = replaced or names
                first = f"without {listed(those)} first"
                then = "it" if len(those) == 1 else "them"
                way = f"apply the manifest {first} and with {then} afterwards, "
                way += "say drain: true in it, which waits for their requests, " * bool(replaced)
            elif replaced:
                way += (
                    "replace it with drain=true, which waits for its requests (commands: --drain), "
                )
            have = f"{'all' if len(taken) == total else f'{len(taken)} of'} {total} slots{kind}"
            raise NoSlotsError(
                f"{f'the one slot{kind}' if total == 1 else have} of this server "
                f"{'holds a policy' if total == 1 else 'hold policies'}, and each policy that "
                f"comes or replaces another needs a free one: {way}or start the server with more "
                f"{flag}"
            )


def check_prompts(engine: MixtureSpec) -> None:
    """Raises: NoSlotsError if no policy that is added can have a prompt of its own."""
    if not engine.adapter_slots:
        raise NoSlotsError("this server takes no further policies; start it with --adapter-slots N")
    if not slots_of(engine, kv_cache=True):
        raise NoSlotsError(
            "no slot of this server has a KV cache, which a policy with a prompt of its own needs; "
            f"start it with --adapter-slots {engine.adapter_slots + 1} or more"
        )
    if not engine.has_prompts:
        raise NoSlotsError(
            "this server was started with --no-slot-prompts (slot_prompts: false), so its "
            "engine gives no policy a prompt of its own; start it without"
        )


def in_words(engine: MixtureSpec, *, kinds: bool = False) -> str:
    """The number of slots, for a message. Args: kinds: names those without KV cache if none is."""
    without = engine.slots_without_kv
    words = f"{engine.adapter_slots} slots"
    return f"{words}, {without or 'none'} of them without KV cache" if without or kinds else words
