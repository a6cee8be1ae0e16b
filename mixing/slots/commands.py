"""The command that changes slots, in vLLM's EngineCore: between two steps, on all ranks or on none.

Cached blocks are named by the generation of each slot's content (prefmix.mixing.engine.scheduler),
which changes with the content, so what an earlier adapter has computed is never read again.
"""

from __future__ import annotations

from typing import Any

from prefmix.mixing import wire

VERBS = ("read", "outcome", "put", "empty", "keep", "restore", "drop", "keys")


def install() -> None:
    """Gives the command to vLLM's EngineCore. Call where vLLM's engine has been imported."""
    from vllm.v1.engine.core import EngineCore

    setattr(EngineCore, wire.SLOT_METHOD, run)


def run(core: Any, verb: str, values: list[Any]) -> dict[str, Any]:
    """Runs one command on all ranks of an engine.

    Args:
      core: vLLM's EngineCore.
      verb, values: `read` (name, folder) begins to read an adapter, `outcome` () tells if that has
        ended; `put` (slot, key) copies it into a slot, `empty` (slot) makes a slot the base, and
        `restore` (slot, key) gives it back what `keep` (slot) has copied aside. No request in the
        engine may use the slot. `drop` () forgets what was read and kept. `keys` () tells the keys.
    Returns: {"failure": a sentence, or None; "done", for `outcome`; "seconds", the longest time of
      a rank, for those that write; "keys", one a slot, None for one without content}.
    """
    assert verb in VERBS, verb
    if verb == "keys":
        held = core.scheduler.slot_keys
        return {"failure": None, "keys": [held.get(slot) for slot in range(_num_slots(core))]}
    if verb not in ("put", "empty", "keep", "restore"):
        return _together(core.collective_rpc("prefmix_slot", args=(verb, values)))
    slot = values[0]
    if not 0 <= slot < _num_slots(core):
        return {"failure": f"there is no slot {slot}; this engine has {_num_slots(core)}"}
    member = core.scheduler.mixture.slot_members[slot]
    if users := core.scheduler.num_requests_of(member):
        return {"failure": f"{users} requests under way use slot {slot}; wait until they end"}
    if verb == "keep":
        return _together(core.collective_rpc("prefmix_slot", args=(verb, [slot])))
    if verb == "put":  # the ranks compute together, so none may be without the adapter
        outcome = _together(core.collective_rpc("prefmix_slot", args=("outcome", [])))
        if outcome["failure"] is not None or not outcome["done"]:
            return {"failure": outcome["failure"] or "no adapter has been read for the slot"}
    generations = core.scheduler.slot_generations
    generations[member] = generations.get(member, 0) + 1
    core.scheduler.slot_keys.pop(slot, None)
    found = _together(core.collective_rpc("prefmix_slot", args=(verb, [slot])))
    if verb == "put" and found["failure"] is not None:  # on some rank: so on none
        core.collective_rpc("prefmix_slot", args=("empty", [slot]))
    elif verb != "empty" and found["failure"] is None and values[1] is not None:
        core.scheduler.slot_keys[slot] = values[1]
    return found


def _num_slots(core: Any) -> int:
    return int(core.scheduler.mixture.adapter_slots)


def _together(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """One answer for all ranks: the first failure, done once all are, and the longest time."""
    failures = [each["failure"] for each in answers if each["failure"] is not None]
    found: dict[str, Any] = {"failure": failures[0] if failures else None}
    if any("done" in each for each in answers):
        found["done"] = all(each.get("done") for each in answers)
    if times := [each["seconds"] for each in answers if "seconds" in each]:
        found["seconds"] = max(times)
    return found
