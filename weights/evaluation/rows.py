"""The rows of `prefmix eval`: the weightings that are measured, and their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from prefmix.mixing.spec import MixtureSpec
from prefmix.mixing.ways_to_mix import Mixing
from prefmix.weights.evaluation.weighting import Weighting, simplex_grid

UNIFORM = "uniform"
"""Name of the row of equal weights."""


def average_member(name: str) -> str:
    """Name of the member that holds a parameter average."""
    return f"average-{name}"


def evaluation_rows(
    spec: MixtureSpec,
    profiles: Mapping[str, Sequence[float]],
    *,
    averages: Mapping[str, Mapping[str, float]],
    grid: int | None,
    ways: Sequence[Mixing] = ("logits",),
    candidates: int = 1,
) -> list[Weighting]:
    """Lists the reference if there is one, each policy, uniform, profiles, averages and the grid.

    Rows of equal weights become one row that has all their names. A mixture has a row for each way
    to mix, one below the other.

    Args:
      spec: the mixture without averages.
      profiles: name -> weights of the members.
      averages: name -> shares of the members.
      grid: adds mixtures in steps of 1 / grid; None adds none.
      ways: the ways to mix of mixtures.
      candidates: above 1, mixtures of logits, without those of the grid, have one more row, whose
        answers are picked from so many.
    """
    policies, members = spec.policy_names, spec.member_names
    order = [*members[len(policies) :], *policies]
    named: list[tuple[str, dict[str, float]]] = [(name, {name: 1.0}) for name in order]
    if len(policies) > 1:
        named.append((UNIFORM, uniform_shares(spec)))
    for name, weights_M in profiles.items():
        named.append((f"@{name}", nonzero(members, weights_M)))
    names: dict[tuple[tuple[str, float], ...], list[str]] = {}
    for name, weights in named:
        names.setdefault(_key(weights), []).append(name)
    rows = [Weighting(name=" = ".join(name), weights=dict(key)) for key, name in names.items()]
    rows += [
        Weighting(name=f"average {name}", weights={average_member(name): 1.0}, shares=shares)
        for name, shares in averages.items()
    ]
    for weights_K in simplex_grid(len(policies), grid) if grid else ():
        weights = nonzero(policies, weights_K)
        if _key(weights) not in names:
            label = " ".join(f"{weight:.3g}" for weight in weights_K)
            rows.append(Weighting(name=label, weights=weights, of_grid=True))
    return [
        each
        for row in rows
        for each in (_mixed(row, ways, candidates) if row.is_mixture else [row])
    ]


def _mixed(row: Weighting, ways: Sequence[Mixing], candidates: int) -> list[Weighting]:
    """The row, mixed in each of the ways, and with candidates."""
    found = [
        replace(row, mixing=way, name=row.name if way == "logits" else f"{row.name}, {way}")
        for way in ways
    ]
    if candidates > 1 and "logits" in ways and not row.of_grid:
        name = f"{row.name}, {candidates} candidates"
        found.append(replace(row, name=name, candidates=candidates))
    return found


def uniform_shares(spec: MixtureSpec) -> dict[str, float]:
    """Equal weights of the policies."""
    return nonzero(spec.member_names, spec.uniform_weights)


def nonzero(members: Sequence[str], weights_M: Sequence[float]) -> dict[str, float]:
    """Member -> weight, without the members of weight 0."""
    pairs = zip(members, weights_M, strict=True)
    return {name: float(weight) for name, weight in pairs if weight}


def _key(weights: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(weights.items()))
