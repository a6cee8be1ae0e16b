"""The fit job: draws responses, fits weights to their scores, and measures the served mixture.

The samplers fit two different objectives. `mixture` fits the token-level mixture that is served, on
its own responses, round by round. `sequence` and `reference` fit the sequence-level product of the
paper, on one sample of the mixture of logits at equal weights, or of the reference policy. All end
with the KLs of the *served* mixture, measured on fresh responses.

If the served mixture mixes parameters, every response is scored under each policy, and at weights
nearby for the gradient (prefmix.weights.engines.finite_differences).

Everything drawn is kept under the cache folder, by the hash of all that decides it: a fit that was
killed goes on, and a repeated one draws nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from prefmix.mixing.spec import MixtureSpec
from prefmix.mixing.ways_to_mix import Mixing, MixingError, check_mixing
from prefmix.weights.engines.finite_differences import Differences
from prefmix.weights.engines.local import Engine
from prefmix.weights.engines.progress import Progress
from prefmix.weights.engines.prompts import Prompt, hash_of_prompts
from prefmix.weights.fit import score_table
from prefmix.weights.fit.deployed import measure_deployed
from prefmix.weights.fit.draws import Draws, DrawSettings, cache_name
from prefmix.weights.fit.objective import Floats
from prefmix.weights.fit.on_policy import Measured, OnPolicyFit
from prefmix.weights.fit.result import MIXTURE, NOTHING_FITTED, PARAMETERS, FitResult
from prefmix.weights.fit.score_table import ENTROPY, KL, ScoreTable
from prefmix.weights.fit.settings import FitError, FitSettings, importances_to_weights
from prefmix.weights.fit.table_fit import fit_table

EVALUATION_SEED = 777_000
"""Added to the seed for the responses that judge a fit, which must not be those that made it."""


class FitJob:
    """One fit over an engine: `run` does all of it, from top to bottom."""

    def __init__(
        self,
        *,
        spec: MixtureSpec,
        prompts: Sequence[Prompt],
        settings: FitSettings,
        engine: Callable[[], Engine],
        content_hashes: Mapping[str, str],
        cache: Path,
        quiet: bool = False,
    ) -> None:
        """Args:
        spec: the policies, and the reference if the sampler needs it.
        prompts: the prompts to fit on.
        settings: the sampler, and how much is drawn.
        engine: makes the engine; called once, and not at all if everything is cached.
        content_hashes: content hash of each member, part of the cache's names.
        cache: folder of everything drawn.
        quiet: show no progress.
        Raises: FitError for the reference sampler without a reference, and for mixed parameters of
          full checkpoints.
        """
        try:
            check_mixing(settings.mixing, has_base=spec.base is not None)
        except MixingError as error:
            raise FitError(f"--mixing {settings.mixing}: {error}") from None
        if settings.sampler == "reference" and spec.reference is None:
            raise FitError(
                "the reference sampler draws from the reference policy, and none was given; "
                "add --reference NAME=MODEL or use --sampler mixture or sequence"
            )
        self.spec, self.prompts, self.settings = spec, list(prompts), settings
        self.content_hashes = content_hashes
        self._progress = Progress(quiet=quiet)
        self._draws = Draws(
            spec=spec,
            engine=engine,
            cache=cache,
            members=spec.policy_names,
            num_responses=self._num_responses(),
            num_shifts=2 * (len(spec.policies) - 1) if self._takes_differences else 0,
            progress=self._progress,
        )

    def run(self) -> FitResult:
        """Fits the weights, then measures the served mixture at them.

        Raises: FitError, ScoreTableError; EngineError or RemoteError of the engine.
        """
        if self.settings.importances is not None:
            found = self._take_importances(self.settings.importances)
        elif self.settings.sampler == "mixture":
            found = self._fit_mixture()
        else:
            found = self._fit_sequences()
        table, fresh = self._drawn(
            found.weights_K,
            self.prompts,
            seed=EVALUATION_SEED,
            title="measure",
            mixing=self.settings.mixing,
        )
        deployed = measure_deployed(
            fresh,
            found.weights_K,
            names=found.names,
            min_weight=found.min_weight,
            mean_tokens=float(table.num_tokens_N.mean()),
            multiplier_K=found.multiplier_K,
        )
        self._draws.finish()
        return found.with_deployed(deployed)

    def _fit_mixture(self) -> FitResult:
        """The token-level fit: rounds of fresh responses at the current weights."""
        fit = OnPolicyFit(
            num_policies=len(self.spec.policies),
            radius=self.settings.round_radius,
            min_weight=self.settings.descent.min_weight,
        )
        for index in range(self.settings.num_rounds):
            prompts = self._round_prompts(index)
            _, measured = self._drawn(
                fit.current_K,
                prompts,
                seed=index,
                title=f"round {index + 1}",
                mixing=self.settings.mixing,
            )
            if not np.isfinite(measured.jacobian_per_prompt()).all():
                raise FitError(
                    "the engine did not measure the policies while it drew responses, and "
                    "--sampler mixture needs that; use --sampler sequence"
                )
            fit.step(measured)
        return FitResult(
            names=self.spec.policy_names,
            weights_K=fit.weights_K,
            fitted=MIXTURE if self.settings.mixing == "logits" else PARAMETERS,
            path_TK=fit.path_TK,
            rounds_kl_TK=fit.kl_TK,
            certificate=None,
            deployed=None,
            verdict="",  # spoken once the served mixture is measured
            min_weight=self.settings.descent.min_weight,
            multiplier_K=fit.multiplier_K,
        )

    def _fit_sequences(self) -> FitResult:
        """The sequence-level fit, on one sample of the reference or of the served mixture."""
        sampler, spec = self.settings.sampler, self.spec
        if sampler == "reference":
            proposal = [float(member == spec.reference) for member in spec.members]
        else:
            proposal = [1 / len(spec.policies)] * len(spec.policies)
        table, _ = self._drawn(proposal, self.prompts, seed=0, title=sampler, mixing="logits")
        return fit_table(
            table, self.settings, fitted=f"{sampler} (sequence level)", progress=self._progress
        )

    def _take_importances(self, importances: Mapping[str, float]) -> FitResult:
        weights_K = importances_to_weights(importances, self.spec.policy_names)
        return FitResult(
            names=self.spec.policy_names,
            weights_K=weights_K,
            fitted="fixed importances",
            path_TK=weights_K[None, :],
            rounds_kl_TK=None,
            certificate=None,
            deployed=None,
            verdict=NOTHING_FITTED,
        )

    @property
    def _takes_differences(self) -> bool:
        """True if the fit's gradient comes from finite differences."""
        settings = self.settings
        is_mixture = settings.sampler == "mixture" and settings.importances is None
        return is_mixture and settings.mixing == "parameters"

    def _drawn(
        self,
        weights: Sequence[float] | Floats,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        title: str,
        mixing: Mixing,
    ) -> tuple[ScoreTable, Measured]:
        """Responses of the mixture at some weights, with log-probabilities of every policy, and
        what was measured while they were sampled, or by scoring them at weights nearby."""
        settings = DrawSettings(
            weights_M=self._of_members(weights),
            mixing=mixing,
            num_responses=self.settings.num_responses,
            max_tokens=self.settings.max_tokens,
            seed=self.settings.descent.seed * 1_000 + seed,
        )
        name = cache_name([asdict(settings), dict(self.content_hashes), hash_of_prompts(prompts)])
        near = Differences(np.asarray(weights)) if self._takes_differences else None
        shifts = [] if near is None else [self._of_members(point) for point in near.points_SK]
        drawn = self._draws.draw(name, prompts, settings, title=title, shifts=shifts)
        names = self.spec.policy_names
        plain = [name for name in drawn.table.column_names if name != ENTROPY]
        table = score_table.check(
            drawn.table.select([name for name in plain if not name.startswith(KL)]),
            source=title,
            policies=names,
        )
        assert table.proposal_N is not None
        _, prompt_of_N = np.unique(table.prompt_ids_N, return_inverse=True)
        measured = Measured(
            prompt_of_N=prompt_of_N,
            logprob_N=table.proposal_N,
            policy_logprobs_NK=table.scores_NK,
            kl_NK=np.stack([drawn.table[f"{KL}{name}"].to_numpy() for name in names], axis=1),
            entropy_N=drawn.table[ENTROPY].to_numpy(),
            differences_NK=None
            if near is None
            else near.scores(table.proposal_N, drawn.shifted_SN),
        )
        return table, measured

    def _of_members(self, weights: Sequence[float] | Floats) -> tuple[float, ...]:
        """The weights with a 0 for the reference, if only those of the policies are given."""
        weights_M = [float(weight) for weight in weights]
        return (*weights_M, *[0.0] * (self.spec.num_members - len(weights_M)))

    def _round_prompts(self, index: int) -> list[Prompt]:
        """The prompts of a round: the next ones of an endless shuffled deck."""
        size = min(self.settings.round_prompts, len(self.prompts))
        rng = np.random.default_rng(self.settings.descent.seed)
        deck: list[int] = []
        while len(deck) < (index + 1) * size:
            deck += rng.permutation(len(self.prompts)).tolist()
        chosen = dict.fromkeys(deck[index * size : (index + 1) * size])
        return [self.prompts[position] for position in chosen]

    def _num_responses(self) -> int:
        """Responses that the whole fit draws, at most; each is scored under K policies."""
        num_prompts = len(self.prompts)
        fitted = 0
        if self.settings.importances is None:
            per_round = min(self.settings.round_prompts, num_prompts)
            is_mixture = self.settings.sampler == "mixture"
            fitted = per_round * self.settings.num_rounds if is_mixture else num_prompts
        return (fitted + num_prompts) * self.settings.num_responses
