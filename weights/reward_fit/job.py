"""The fit of the served mixture to rewards, from drawing responses to measuring the answer.

The members alone are judged first, which gives each reward its scale. Then rounds of responses of
the mixture at its current weights give gains and their slopes; `PooledSteps` goes to the weights
that are best by the linear models of all rounds, inside a box that shrinks. The problem is not
convex: a local optimum is found. Everything drawn is kept, as by `prefmix.weights.fit.sampling`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from prefmix.mixing.name_list import listed
from prefmix.weights.fit.rewards import Reward
from prefmix.weights.fit.sampling import Batch, FitInputs, Sampling
from prefmix.weights.fit.sequence_level.objective import Floats
from prefmix.weights.fit.settings import FitError
from prefmix.weights.fit.token_level.on_policy import PooledSteps
from prefmix.weights.reward_fit.gains import Judged, Scales, judged_rewards, scales
from prefmix.weights.reward_fit.measured_gains import measure_gains
from prefmix.weights.reward_fit.result import Aim, RewardFitResult

SINGLE_SEED = 555_000
"""Added to the seed for the responses of the members alone."""


class RewardFitJob:
    """One fit to rewards over an engine: `run` does all of it."""

    def __init__(
        self,
        inputs: FitInputs,
        *,
        rewards: Mapping[str, Reward],
        aim: Aim,
        importances: Mapping[str, float] | None = None,
    ) -> None:
        """Args:
        inputs: the policies and prompts; of the settings: how much is drawn, the first round's
          radius, floor and seed.
        rewards: objective -> the function that judges answers.
        aim: what is made large.
        importances: objective -> number, for `weighted`.
        Raises: FitError without rewards, and for importances that do not fit them.
        """
        if not rewards:
            raise FitError(f"the objective {aim} needs rewards; add --reward NAME=REWARD")
        self.spec, self.settings = inputs.spec, inputs.settings
        self.rewards, self.aim = dict(rewards), aim
        self.importance_O = _importances(aim, importances, tuple(rewards))
        num_prompts = len(inputs.prompts)
        per_round = min(self.settings.round_prompts, num_prompts)
        asked = per_round * (self.spec.num_members + self.settings.num_rounds) + num_prompts
        self._sampling = Sampling(
            inputs,
            num_responses=asked * self.settings.num_responses,
            takes_differences=self.settings.mixing == "parameters",
        )

    def run(self) -> RewardFitResult:
        """Fits the weights, then measures the served mixture at them.

        Raises: FitError, ScoreTableError; EngineError or RemoteError of the engine.
        """
        found, alone_RO = self._scales()
        aims_AO = np.eye(len(self.rewards))
        if self.aim != "max-min-reward":
            aims_AO = self.importance_O[None, :]
        floor = self.settings.descent.min_weight
        fit = PooledSteps(
            num_policies=len(self.spec.policies),
            radius=self.settings.round_radius,
            min_weight=floor,
        )
        gains_TO = []
        for index in range(self.settings.num_rounds):
            judged = self._judged(self._sampling.draw_round(index, fit.current_K), found)
            gain_PO = judged.gain_per_prompt()
            slope_PAK = np.einsum("ao,pok->pak", aims_AO, judged.slope_per_prompt())
            fit.move(-gain_PO @ aims_AO.T, -slope_PAK)
            gains_TO.append(gain_PO.mean(axis=0))
        fresh = self._sampling.draw_fresh(fit.weights_K)
        measured = measure_gains(
            self._judged(fresh, found),
            fit.weights_K,
            fit.multiplier_A,
            aims_AO=aims_AO,
            objectives=tuple(self.rewards),
            policies=self.spec.policy_names,
            min_weight=floor,
            mean_tokens=float(fresh.table.num_tokens_N.mean()),
        )
        self._sampling.finish()
        return RewardFitResult(
            aim=self.aim,
            names=self.spec.policy_names,
            objectives=tuple(self.rewards),
            importance_O=self.importance_O,
            weights_K=fit.weights_K,
            path_TK=fit.path_TK,
            gains_TO=np.stack(gains_TO),
            scales=found,
            members=self.spec.member_names,
            alone_RO=alone_RO,
            measured=measured,
            min_weight=floor,
            mixing=self.settings.mixing,
        )

    def _judged(self, batch: Batch, found: Scales) -> Judged:
        gains_NO = found.gains(judged_rewards(batch.answers, self.rewards))
        return Judged(measured=batch.measured, gains_NO=gains_NO)

    def _scales(self) -> tuple[Scales, Floats]:
        """The scales of the rewards, and the gains of the members alone, [R, O]."""
        prompts = self._sampling.round_prompts(0)
        rewards_RPO = []
        for row, name in enumerate(self.spec.member_names):
            alone = [float(name == member) for member in self.spec.member_names]
            answers = self._sampling.draw_answers(
                alone, prompts, seed=SINGLE_SEED + row, title=name
            )
            judged_NO = judged_rewards(answers, self.rewards)
            # All responses to a prompt stand one after the other.
            rewards_RPO.append(judged_NO.reshape(len(prompts), -1, len(self.rewards)).mean(axis=1))
        reference = self.spec.reference
        found = scales(
            np.stack(rewards_RPO),
            members=self.spec.member_names,
            reference=None if reference is None else reference.name,
            objectives=tuple(self.rewards),
        )
        return found, found.gains(np.stack(rewards_RPO).mean(axis=1))


def _importances(
    aim: Aim, importances: Mapping[str, float] | None, objectives: tuple[str, ...]
) -> Floats:
    """The share of each objective in the mean, [O]."""
    if (importances is not None) != (aim == "weighted"):
        raise FitError(
            "importances belong to the objective `weighted`, and to no other that rewards have: "
            "give --objective weighted --importance NAME=NUMBER, or neither"
        )
    if importances is None:
        return np.full(len(objectives), 1 / len(objectives))
    unknown = [name for name in importances if name not in objectives]
    if unknown:
        raise FitError(
            f"importance of {unknown[0]!r}: no such reward; there are: {listed(objectives)}"
        )
    values_O = np.array([importances.get(name, 0.0) for name in objectives], dtype=np.float64)
    if not (np.isfinite(values_O).all() and (values_O >= 0).all() and values_O.sum() > 0):
        raise FitError(
            f"importances are {dict(importances)}; they must be finite, non-negative and not all 0"
        )
    share_O: Floats = values_O / values_O.sum()
    return share_O
