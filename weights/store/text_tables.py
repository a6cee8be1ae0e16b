"""Profiles as plain text: aligned columns, numbers flush right."""

from __future__ import annotations

from collections.abc import Sequence

from prefmix.mixing.name_list import listed
from prefmix.weights.store.added import AddedPolicy
from prefmix.weights.store.profiles import ProfileSet


def aligned(rows: Sequence[Sequence[str]], *, num_left: int = 1) -> str:
    """Rows of cells as lines of equal columns.

    Args:
      rows: the cells, the heading first.
      num_left: number of columns that are flush left; the others are flush right.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < num_left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def profile_table(profiles: ProfileSet) -> str:
    """One line a profile, with its own way to mix if it has one; a star marks the default. Behind
    them stand the dormant ones."""
    heading = ["profile", *profiles.member_names]
    rows = [
        [
            profiles.title(name) + (" *" if name == profiles.default else ""),
            *map(_number, weights_M),
        ]
        for name, weights_M in profiles.profiles.items()
    ]
    waiting = [
        f"{name}: dormant, waits for {listed(absent)}"
        for name, absent in profiles.waiting().items()
    ]
    return "\n".join([aligned([heading, *rows]), *waiting])


def history_table(versions: Sequence[ProfileSet]) -> str:
    """One line a version, newest first, its profiles each with its own way to mix if it has one; a
    dash where nobody has signed. If any has added policies, they stand behind the profiles."""
    heading = ["version", "time", "by", "sha256", "default", "profiles"]
    has_added = any(entry.added for entry in versions)
    rows = []
    for entry in reversed(versions):
        at, by = ("-", "-") if entry.signed is None else (entry.signed.at, entry.signed.by)
        digest, titles = entry.sha256[:12], [entry.title(name) for name in entry.profiles]
        row = [str(entry.version), at, by, digest, entry.default, listed(titles)]
        rows.append([*row, listed(entry.added) or "-"] if has_added else row)
    heading += ["added policies"] if has_added else []
    return aligned([heading, *rows], num_left=len(heading))


def difference_table(old: ProfileSet, new: ProfileSet) -> str:
    """One line for each number and each added policy that differs; empty if the sets are equal."""
    rows = [
        [name, member, _number(before), _number(after)]
        for name in dict.fromkeys([*old.profiles, *new.profiles])
        for member, before, after in _differences(old, new, name)
    ]
    for name in dict.fromkeys([*old.added, *new.added]):
        if old.added.get(name) != new.added.get(name):
            rows.append(
                ["(policy)", name, *(_content(each.added.get(name)) for each in (old, new))]
            )
    if old.default != new.default:
        rows.append(["(default)", "", old.default, new.default])
    for name in dict.fromkeys([*old.mixings, *new.mixings]):
        before, after = old.mixings.get(name), new.mixings.get(name)
        if before != after:
            rows.append([name, "(mixing)", before or "-", after or "-"])
    waits = old.waiting(), new.waiting()
    for name in dict.fromkeys([*old.dormant, *new.dormant]):
        if old.dormant.get(name) != new.dormant.get(name):
            said = ["waits" if name in each else "-" for each in waits]
            rows.append([name, "(dormant)", *said])
    for name in old.profiles.keys() & new.profiles.keys():
        if old.provenance.get(name, {}) != new.provenance.get(name, {}):
            rows.append([name, "(provenance)", "", "changed"])
    heading = ["profile", "policy", f"version {old.version}", f"version {new.version}"]
    return aligned([heading, *rows], num_left=2) if rows else ""


def _differences(
    old: ProfileSet, new: ProfileSet, name: str
) -> list[tuple[str, float | None, float | None]]:
    before = old.weights(name) if name in old.profiles else {}
    after = new.weights(name) if name in new.profiles else {}
    members = dict.fromkeys([*before, *after])
    if before and after:  # a policy that comes has no weight, which is no change
        before, after = ({**dict.fromkeys(members, 0.0), **each} for each in (before, after))
    return [
        (member, before.get(member), after.get(member))
        for member in members
        if before.get(member) != after.get(member)
    ]


def _content(policy: AddedPolicy | None) -> str:
    """The content of an added policy: its folder and the beginnings of hashes."""
    if policy is None:
        return "-"
    words = []
    if policy.adapter is not None and policy.sha256 is not None:
        words.append(f"{policy.adapter} {policy.sha256[:12]}")
    if policy.system_sha256 is not None:
        words.append(f"prompt {policy.system_sha256[:12]}")
    return listed([*words, *([] if policy.kv_cache else ["without KV cache"])])


def _number(weight: float | None) -> str:
    return "-" if weight is None else f"{weight:.6f}"
