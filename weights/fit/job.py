"""The fit job: draws responses, fits weights to their scores, and measures the served mixture.

The samplers fit two different objectives. `mixture` fits the token-level mixture that is served, on
its own responses, round by round. `sequence` and `reference` fit the sequence-level product of the
paper, on one sample of the mixture of logits at equal weights, or of the reference policy. All end
with the KLs of the *served* mixture, measured on fresh responses.

If the served mixture mixes parameters, every response is scored under each policy, and at weights
nearby for the gradient (prefmix.weights.engines.finite_differences).

`prefmix.weights.fit.sampling` keeps everything drawn.
"""

from __future__ import annotations

from collections.abc import Mapping

from prefmix.weights.fit.result import MIXTURE, NOTHING_FITTED, PARAMETERS, FitResult
from prefmix.weights.fit.sampling import FitInputs, Sampling
from prefmix.weights.fit.settings import FitError, importances_to_weights
from prefmix.weights.fit.table_fit import fit_table
from prefmix.weights.fit.token_level.deployed import measure_deployed
from prefmix.weights.fit.token_level.on_policy import OnPolicyFit


class FitJob:
    """One fit over an engine: `run` does all of it, from top to bottom."""

    def __init__(self, inputs: FitInputs) -> None:
        """Args:
        inputs: the policies, with the reference if the sampler needs it, prompts and settings.
        Raises: FitError for the reference sampler without a reference, and for mixed parameters of
          full checkpoints.
        """
        self.spec, self.settings = inputs.spec, inputs.settings
        self.prompts = list(inputs.prompts)
        if self.settings.sampler == "reference" and self.spec.reference is None:
            raise FitError(
                "the reference sampler draws from the reference policy, and none was given; "
                "add --reference NAME=MODEL or use --sampler mixture or sequence"
            )
        self._sampling = Sampling(
            inputs,
            num_responses=self._num_responses(),
            takes_differences=self._takes_differences,
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
        fresh = self._sampling.draw_fresh(found.weights_K)
        deployed = measure_deployed(
            fresh.measured,
            found.weights_K,
            names=found.names,
            min_weight=found.min_weight,
            mean_tokens=float(fresh.table.num_tokens_N.mean()),
            multiplier_K=found.multiplier_K,
        )
        self._sampling.finish()
        return found.with_deployed(deployed)

    def _fit_mixture(self) -> FitResult:
        """The token-level fit: rounds of fresh responses at the current weights."""
        fit = OnPolicyFit(
            num_policies=len(self.spec.policies),
            radius=self.settings.round_radius,
            min_weight=self.settings.descent.min_weight,
        )
        for index in range(self.settings.num_rounds):
            fit.step(self._sampling.draw_round(index, fit.current_K).measured)
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
        drawn = self._sampling.draw(proposal, self.prompts, seed=0, title=sampler, mixing="logits")
        return fit_table(
            drawn.table,
            self.settings,
            fitted=f"{sampler} (sequence level)",
            progress=self._sampling.progress,
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

    def _num_responses(self) -> int:
        """Responses that the whole fit draws, at most; each is scored under K policies."""
        num_prompts = len(self.prompts)
        fitted = 0
        if self.settings.importances is None:
            per_round = min(self.settings.round_prompts, num_prompts)
            is_mixture = self.settings.sampler == "mixture"
            fitted = per_round * self.settings.num_rounds if is_mixture else num_prompts
        return (fitted + num_prompts) * self.settings.num_responses
