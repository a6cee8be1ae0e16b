"""Gains: rewards on scales of their own, and what the weights of the served mixture change.

A gain is the share of the way from the reference policy's mean reward (0) to the best single
policy's (1). Without a reference, 0 is the lowest policy's. Only on such scales can the smallest
gain, or a mean of gains, of rewards in different units be made large.

The mixture is on its own responses, so that the gradient by its weights is that of its log
probability (the score function), which the engine measures while it samples:

    dG_o/dw_j = E[ (g_o(y) - b) s_j(y) ],   s_j = sum_t (log pi_j(y_t) + KL_t,j + H_t)

(`prefmix.weights.fit.token_level.on_policy` derives s_j.) The baseline b is the mean gain of the
other responses to the prompt. A gain moves only with the K - 1 free weights: on the simplex the sum
of w_j s_j changes nothing, and no network is differentiated.

Shapes: N responses, P prompts, K policies, O objectives, A aims, R rows of single policies.
Source: Williams 1992 (REINFORCE) for the score-function gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prefmix.mixing.name_list import listed
from prefmix.weights.fit.rewards import Answers, Reward
from prefmix.weights.fit.sequence_level.objective import Floats
from prefmix.weights.fit.settings import FitError
from prefmix.weights.fit.token_level.on_policy import Measured

_CERTAIN = 3.0
"""Standard errors by which a scale's ends must differ."""


@dataclass(frozen=True, kw_only=True)
class Scales:
    """The ends of each objective's scale, as mean rewards."""

    zero_O: Floats
    one_O: Floats
    best_of_O: tuple[str, ...]
    """The policy that earns the most of each reward."""

    def gains(self, rewards: Floats) -> Floats:
        """Rewards, objectives last, as gains."""
        found: Floats = (rewards - self.zero_O) / (self.one_O - self.zero_O)
        return found


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Responses of the mixture with the gains that they earn."""

    measured: Measured
    gains_NO: Floats

    def gain_per_prompt(self) -> Floats:
        """Mean gains by prompt, [P, O]."""
        return self.measured.by_prompt(self.gains_NO)

    def slope_per_prompt(self) -> Floats:
        """dG_o / dw_j by prompt, [P, O, K]."""
        return self.measured.slope_per_prompt(self.gains_NO)


def judged_rewards(answers: Answers, rewards: Mapping[str, Reward]) -> Floats:
    """The rewards of N responses, [N, O].

    Raises: FitError if a reward does not apply to a response, or is no finite number.
    """
    columns = []
    for name, reward in rewards.items():
        values_N = np.array(
            reward(answers.prompts, answers.texts, answers.tokens), dtype=np.float64
        )
        if not np.isfinite(values_N).all():
            wrong = int(np.flatnonzero(~np.isfinite(values_N))[0])
            raise FitError(
                f"the reward {name!r} gives no finite number for a response to prompt "
                f"{answers.prompts[wrong].id!r}; a fit needs every reward of every response"
            )
        columns.append(values_N)
    return np.stack(columns, axis=1)


def scales(
    rewards_RPO: Floats, *, members: Sequence[str], reference: str | None, objectives: Sequence[str]
) -> Scales:
    """Finds the scales from the rewards of single policies.

    Args:
      rewards_RPO: mean rewards by prompt of each member alone.
      members: their R names.
      reference: the reference's name; None without one.
      objectives: the O names.
    Raises: FitError if no policy earns more than the scale's 0, beyond noise.
    """
    mean_RO = rewards_RPO.mean(axis=1)
    policies = [row for row, name in enumerate(members) if name != reference]
    best_O = np.array(policies)[mean_RO[policies].argmax(axis=0)]
    low_O = (
        mean_RO.argmin(axis=0)
        if reference is None
        else np.full(len(objectives), list(members).index(reference))
    )
    for o, name in enumerate(objectives):
        lead_P = rewards_RPO[best_O[o], :, o] - rewards_RPO[low_O[o], :, o]
        error = lead_P.std(ddof=1) / np.sqrt(len(lead_P)) if len(lead_P) > 1 else np.inf
        if not lead_P.mean() > _CERTAIN * error:
            earned = [f"{each} {mean_RO[row, o]:.4g}" for row, each in enumerate(members)]
            raise FitError(
                f"no policy earns clearly more of the reward {name!r} than {members[low_O[o]]!r} "
                f"does ({listed(earned)}), so that there is no gain to measure; leave this reward "
                "out, add a policy that was trained for it, or take more prompts and responses"
            )
    columns = np.arange(len(objectives))
    return Scales(
        zero_O=mean_RO[low_O, columns],
        one_O=mean_RO[best_O, columns],
        best_of_O=tuple(members[row] for row in best_O),
    )
