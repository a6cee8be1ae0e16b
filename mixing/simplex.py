"""Turns preferences into one weight vector per request, and checks weight vectors.

`weights_from_preferences` takes names and numbers, from HTTP bodies, profiles and the command line.
`check_weights` takes a bare vector that reached the engine by any route. Both return M floats that
sum to 1, where M is `MixtureSpec.num_members`, or raise WeightsError.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from prefmix.mixing.name_list import listed
from prefmix.mixing.shown_value import shown
from prefmix.mixing.spec import MixtureSpec, WeightSpace

SUM_TOLERANCE = 1e-3
"""Largest allowed distance of a vector's sum from 1; enough for weights rounded to 3 digits."""

MAX_ABS_WEIGHT = 1e3
"""Largest allowed affine weight; larger ones overflow half-precision logits and have no use."""


class WeightsError(ValueError):
    """Weights outside the weight space. `reason` is a short word for metrics."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def _number(value: object, *, name: str) -> float:
    # bool is an int to Python but not a number to a person.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise WeightsError(
            f"the weight of {name} is {shown(value)}, expected a number", reason="not_a_number"
        )
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise WeightsError(
            f"the weight of {name} is {shown(value, 40)}, expected a finite number",
            reason="not_finite",
        )
    return number


def _check_range(weight: float, *, name: str, weight_space: WeightSpace) -> None:
    if weight_space == "simplex" and weight < 0:
        raise WeightsError(
            f"the weight of {name} is {weight:g}, negative; on the simplex weights are >= 0 "
            "(serve with --weight-space affine for negative ones)",
            reason="negative",
        )
    if weight_space == "affine" and abs(weight) > MAX_ABS_WEIGHT:
        raise WeightsError(
            f"the weight of {name} is {weight:g}; allowed: ±{MAX_ABS_WEIGHT:g}",
            reason="out_of_range",
        )


def weights_from_preferences(preferences: object, spec: MixtureSpec) -> tuple[float, ...]:
    """Turns `{member: number}` into the M weights of a request.

    Simplex: the numbers are non-negative ratios, divided by their sum; unnamed members get 0.
    Affine: the numbers are the weights themselves; unnamed policies get 0 and the reference, unless
    named, takes 1 minus their sum. Without a reference they must sum to 1 already: a different
    sum would be a hidden temperature (see DExperts, DeRa, MOD for uses of negative weights).

    Args:
      preferences: a mapping of member names to numbers.
      spec: the mixture served.
    Returns: M floats in member order, summing to 1.
    Raises: WeightsError naming the field, what came and what is allowed.
    """
    names = spec.member_names
    if not isinstance(preferences, Mapping):
        raise WeightsError(
            f'{shown(preferences)} came, expected an object such as {{"{names[0]}": 1}}',
            reason="wrong_type",
        )
    if not preferences:
        raise WeightsError(
            f"no policy is named; name at least one of: {listed(names)}",
            reason="empty",
        )
    for name in preferences:
        if name not in names:
            raise WeightsError(
                f"unknown policy {shown(name)}; this mixture has: {listed(names)}",
                reason="unknown_policy",
            )
    given = {name: _number(value, name=repr(name)) for name, value in preferences.items()}
    for name, weight in given.items():
        _check_range(weight, name=repr(name), weight_space=spec.weight_space)

    if spec.weight_space == "simplex":
        largest = max(given.values())
        if largest == 0:
            raise WeightsError(
                "all weights are 0; at least one must be positive", reason="all_zero"
            )
        # Dividing by the largest first keeps the sum finite for ratios near the float limits.
        total = math.fsum(weight / largest for weight in given.values())
        return tuple(given.get(name, 0.0) / largest / total for name in names)

    if spec.reference is not None and spec.reference.name not in given:
        given[spec.reference.name] = 1.0 - math.fsum(given.values())
    total = math.fsum(given.values())
    if abs(total - 1) > SUM_TOLERANCE:
        remedy = (
            "change them, or serve with --reference so that the reference takes the rest"
            if spec.reference is None
            else f"leave out {spec.reference.name!r}, which then takes the rest"
        )
        raise WeightsError(
            f"affine weights sum to {total:g}, expected 1 within {SUM_TOLERANCE:g}; " + remedy,
            reason="sum",
        )
    return tuple(given.get(name, 0.0) / total for name in names)


def check_weights(
    weights: object, *, num_members: int, weight_space: WeightSpace
) -> tuple[float, ...]:
    """Checks a bare weight vector before it enters the engine.

    Args:
      weights: the value under `wire.WEIGHTS_KEY`.
      num_members: M, the required length.
      weight_space: the set that the vector must lie in.
    Returns: M floats, rescaled to sum to 1 up to rounding.
    Raises: WeightsError.
    """
    if not isinstance(weights, (list, tuple)):
        raise WeightsError(
            f"weights are {shown(weights)}, expected a list of {num_members} numbers",
            reason="wrong_type",
        )
    if len(weights) != num_members:
        raise WeightsError(
            f"{len(weights)} weights came, expected {num_members}, one for each member",
            reason="wrong_length",
        )
    numbers = [_number(value, name=f"member {index}") for index, value in enumerate(weights)]
    for index, number in enumerate(numbers):
        _check_range(number, name=f"member {index}", weight_space=weight_space)
    try:
        total = math.fsum(numbers)
    except OverflowError:
        total = math.inf
    if abs(total - 1) > SUM_TOLERANCE:
        raise WeightsError(
            f"weights sum to {total:g}, expected 1 within {SUM_TOLERANCE:g}; "
            "send preference_weights to have ratios normalised",
            reason="sum",
        )
    return tuple(number / total for number in numbers)
