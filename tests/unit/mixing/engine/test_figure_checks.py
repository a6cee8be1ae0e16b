"""The check of the engine takes figures that are numbers, and policies that agree."""

from __future__ import annotations

import math

import pytest

from prefmix.mixing.engine.figure_checks import (
    SelfCheckError,
    check_agreement,
    check_parameters,
    is_sound,
)
from prefmix.mixing.spec import MixtureSpec, Policy

SPEC = MixtureSpec(policies=tuple(Policy(name=name, model=f"org/{name}") for name in ("a", "b")))
NAN = math.nan


def figures(
    *, own: tuple[float, float], log_partition: float = 0.0, logprob: float = -1.0
) -> list[float]:
    """log Z, entropy, the mixture's log-probability; per member KL, log-probability, agreement."""
    return [log_partition, 2.0, logprob, 0.1, 0.1, *own, 0.0, 1.0]


ALONE = [[figures(own=(-1.0, NAN))], [figures(own=(NAN, -3.0))]]


def test_figures_of_members_without_weight_do_not_count() -> None:
    assert is_sound(figures(own=(-1.0, NAN)), [1.0, 0.0])
    assert not is_sound(figures(own=(-1.0, NAN)), [0.5, 0.5])
    assert not is_sound(figures(own=(-1.0, -3.0), logprob=NAN), [0.5, 0.5])
    assert not is_sound(figures(own=(-1.0, math.inf)), [0.5, 0.5])
    assert not is_sound(figures(own=(-1.0, -3.0), log_partition=-math.inf), [0.5, 0.5])
    assert is_sound(figures(own=(-1.0, -math.inf), logprob=-math.inf), [0.5, 0.5]), "a ban"


def test_a_mixture_is_the_weighted_sum_of_its_policies_renormalised() -> None:
    sound = figures(own=(-1.0, -3.0), log_partition=-0.5, logprob=-1.5)
    check_agreement(SPEC, ALONE, [sound], tolerance=0.05)
    wrong = figures(own=(-1.0, -3.0), log_partition=-0.5, logprob=-1.7)
    with pytest.raises(SelfCheckError, match=r"mixture of a, b .* -1\.700, .* make -1\.500"):
        check_agreement(SPEC, ALONE, [wrong], tolerance=0.05)


@pytest.mark.parametrize("beside", [-3.2, NAN, -math.inf])
def test_a_policy_that_differs_beside_others_is_named(beside: float) -> None:
    together = figures(own=(-1.0, beside), log_partition=-0.5, logprob=-1.5)
    with pytest.raises(SelfCheckError, match=r"policy 'b' .* -3\.000 alone"):
        check_agreement(SPEC, ALONE, [together], tolerance=0.05)
    check_agreement(SPEC, ALONE, [figures(own=(-1.0, -3.2), logprob=-2.1)], tolerance=0.3)


def test_a_token_that_a_policy_bans_is_banned_beside_others() -> None:
    banned = [ALONE[0], [figures(own=(NAN, -math.inf))]]
    together = figures(own=(-1.0, -math.inf), logprob=-math.inf)
    check_agreement(SPEC, banned, [together], tolerance=0.05)


@pytest.mark.parametrize("averaged", [-3.2, NAN, -math.inf])
def test_a_policy_that_differs_as_a_mean_of_parameters_is_named(averaged: float) -> None:
    alone = [figures(own=(NAN, -3.0), logprob=-3.0)]
    check_parameters("b", alone, [figures(own=(NAN, NAN), logprob=-3.04)], tolerance=0.05)
    with pytest.raises(SelfCheckError, match=r"policy 'b' .* as a mean of parameters .* alone"):
        check_parameters("b", alone, [figures(own=(NAN, NAN), logprob=averaged)], tolerance=0.05)
    banned = [figures(own=(NAN, NAN), logprob=-math.inf)]
    check_parameters("b", banned, banned, tolerance=0.05)
