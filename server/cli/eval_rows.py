"""The rows of `prefmix eval`: which weights are measured, and under which names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefmix.mixing.spec import MixtureSpec
    from prefmix.weights.evaluation.evaluate import Weighting

UNIFORM = "uniform"


def average_member(name: str) -> str:
    """The member that holds the parameter average of that name."""
    return f"average-{name}"


def evaluation_rows(
    spec: MixtureSpec,
    profiles: Mapping[str, Sequence[float]],
    *,
    averages: Mapping[str, Mapping[str, float]],
    grid: int | None,
) -> list[Weighting]:
    """The reference first if there is one, each policy, uniform, profiles, averages, the grid.

    Equal weights are one row, under all names they have.

    Args:
      spec: the mixture without averages.
      profiles: name -> weights of the members.
      averages: name -> shares of the members.
      grid: mixtures in steps of 1 / grid; None for none.
    """
    from prefmix.weights.evaluation.evaluate import Weighting, simplex_grid

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
    return rows


def uniform_shares(spec: MixtureSpec) -> dict[str, float]:
    """Equal weights of the policies."""
    return nonzero(spec.member_names, spec.uniform_weights)


def nonzero(members: Sequence[str], weights_M: Sequence[float]) -> dict[str, float]:
    """Weights by member, those of 0 left out."""
    pairs = zip(members, weights_M, strict=True)
    return {name: float(weight) for name, weight in pairs if weight}


def _key(weights: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(weights.items()))
