"""An adapter is in a slot of all ranks of an engine, or of none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from prefmix.mixing.slots import commands

FIRST_MEMBER = 3


class Core:
    """An engine's core of two ranks, of which the last may refuse a verb."""

    def __init__(self, *, refuses: str | None = None, users: int = 0) -> None:
        self.told: list[tuple[str, list[Any]]] = []
        self._refuses = refuses
        self.scheduler = SimpleNamespace(
            mixture=SimpleNamespace(adapter_slots=2, slot_members=(FIRST_MEMBER, 4)),
            slot_keys={0: "before"},
            slot_generations={FIRST_MEMBER: 7},
            num_requests_of=lambda member: users if member == FIRST_MEMBER else 0,
        )

    def collective_rpc(self, method: str, args: tuple[str, list[Any]]) -> list[dict[str, Any]]:
        assert method == "prefmix_slot"
        self.told.append(args)
        verb, _ = args
        found: dict[str, Any] = {"failure": None}
        if verb == "outcome":
            found["done"] = True
        if verb in ("put", "empty"):
            found["seconds"] = 0.5
        refused = {**found, "failure": f"this rank cannot {verb}"}
        return [found, refused if verb == self._refuses else found]


def test_what_one_rank_refuses_is_in_none() -> None:
    for verb, told in (("outcome", []), ("put", [("put", [0]), ("empty", [0])])):
        core = Core(refuses=verb)
        found = commands.run(core, "put", [0, "new"])
        assert found["failure"] == f"this rank cannot {verb}"
        assert core.told == [("outcome", []), *told]
        assert core.scheduler.slot_keys == ({0: "before"} if verb == "outcome" else {})
    assert core.scheduler.slot_generations == {FIRST_MEMBER: 8}, "blocks of what was there are lost"


def test_a_slot_that_cannot_be_restored_has_no_key() -> None:
    core = Core(refuses="restore")
    assert commands.run(core, "restore", [0, "before"])["failure"] == "this rank cannot restore"
    assert core.scheduler.slot_keys == {}
    core = Core()
    assert commands.run(core, "restore", [0, "before"])["failure"] is None
    assert core.scheduler.slot_keys == {0: "before"}


def test_a_content_has_a_number_of_its_own_on_all_ranks() -> None:
    core = Core()
    for slot, key in ((0, "new"), (1, "other"), (0, "new")):
        assert commands.run(core, "put", [slot, key]) == {"failure": None, "seconds": 0.5}
    assert core.scheduler.slot_generations == {FIRST_MEMBER: 9, 4: 1}
    assert commands.run(core, "keys", [])["keys"] == ["new", "other"]
    commands.run(core, "empty", [0])
    assert commands.run(core, "keys", [])["keys"] == [None, "other"]
    assert core.scheduler.slot_generations == {FIRST_MEMBER: 10, 4: 1}


@pytest.mark.parametrize(
    ("slot", "words"), [(0, "2 requests under way use slot 0"), (2, "there is no slot 2"), (-1, "")]
)
def test_a_slot_that_is_used_or_is_none_keeps_what_it_has(slot: int, words: str) -> None:
    for verb in ("put", "empty"):
        core = Core(users=2)
        found = commands.run(core, verb, [slot, "new"][: 2 if verb == "put" else 1])
        assert words in found["failure"]
        assert (core.told, core.scheduler.slot_keys) == ([], {0: "before"})
