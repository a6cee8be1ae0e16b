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
from dataclasses import asdict, dataclass
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
from prefmix.weights.fit.draws import Drawn, Draws, DrawSettings, cache_name
from prefmix.weights.fit.objective import Floats
from prefmix.weights.fit.on_policy import Measured, OnPolicyFit
from prefmix.weights.fit.result import MIXTURE, NOTHING_FITTED, PARAMETERS, FitResult
from prefmix.weights.fit.score_table import ENTROPY, KL, ScoreTable
from prefmix.weights.fit.settings import FitError, FitSettings, importances_to_weights
from prefmix.weights.fit.table_fit import fit_table

EVALUATION_SEED = 777_000
"""Added to the seed for the responses that judge a fit, which must not be those that made it."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Texts of responses, all to one prompt one after the other."""

    prompts: Sequence[Prompt]
    """The prompt of each."""
    texts: Sequence[str]
    tokens: Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Responses of one draw."""

    table: ScoreTable
    measured: Measured
    """The engine's measurements while they were sampled."""
    answers: Answers
    """Row by row of the table."""


class Sampling:
    """The responses of a fit: drawn at some weights, or read from what an earlier run left."""

    def __init__(
        self,
        *,
        spec: MixtureSpec,
        prompts: Sequence[Prompt],
        settings: FitSettings,
        engine: Callable[[], Engine],
        content_hashes: Mapping[str, str],
        cache: Path,
        progress: Progress,
        num_responses: int,
        takes_differences: bool,
    ) -> None:
        """Args:
        spec: the policies, and the reference if there is one.
        prompts: the prompts to fit on.
        settings: how much is drawn.
        engine: makes the engine; called once, and not at all if everything is cached.
        content_hashes: content hash of each member, part of the cache's names.
        cache: folder of everything drawn.
        progress: where sampling and scoring are shown.
        num_responses: responses that the whole fit draws, at most.
        takes_differences: the responses are scored at weights nearby, too.
        Raises: FitError for mixed parameters of full checkpoints.
        """
        try:
            check_mixing(settings.mixing, has_base=spec.base is not None)
        except MixingError as error:
            raise FitError(f"--mixing {settings.mixing}: {error}") from None
        self._spec, self._prompts, self._settings = spec, list(prompts), settings
        self._content_hashes = content_hashes
        self._takes_differences = takes_differences
        self._draws = Draws(
            spec=spec,
            engine=engine,
            cache=cache,
            members=spec.policy_names,
            num_responses=num_responses,
            num_shifts=2 * (len(spec.policies) - 1) if takes_differences else 0,
            progress=progress,
        )

    def draw(
        self,
        weights: Sequence[float] | Floats,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        title: str,
        mixing: Mixing,
    ) -> Batch:
        """Draws responses of the mixture.

        Args:
          weights: of the policies, or of all members.
          prompts: the prompts.
          seed: of the draw among those of the fit.
          title: the purpose of the draw, shown with its progress.
          mixing: the way to mix.
        """
        near = Differences(np.asarray(weights)) if self._takes_differences else None
        shifts = [] if near is None else [self._of_members(point) for point in near.points_SK]
        drawn, answers = self._drawn(weights, prompts, seed, title, mixing, shifts=shifts)
        names = self._spec.policy_names
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
        return Batch(table=table, measured=measured, answers=answers)

    def draw_answers(
        self, weights: Sequence[float], prompts: Sequence[Prompt], *, seed: int, title: str
    ) -> Answers:
        """Draws responses of which nothing but the texts is wanted. Args: as `draw`."""
        return self._drawn(weights, prompts, seed, title, "logits", members=())[1]

    def _drawn(
        self,
        weights: Sequence[float] | Floats,
        prompts: Sequence[Prompt],
        seed: int,
        title: str,
        mixing: Mixing,
        *,
        shifts: Sequence[Sequence[float]] = (),
        members: Sequence[str] | None = None,
    ) -> tuple[Drawn, Answers]:
        settings = DrawSettings(
            weights_M=self._of_members(weights),
            mixing=mixing,
            num_responses=self._settings.num_responses,
            max_tokens=self._settings.max_tokens,
            seed=self._settings.descent.seed * 1_000 + seed,
        )
        name = cache_name([asdict(settings), dict(self._content_hashes), hash_of_prompts(prompts)])
        drawn = self._draws.draw(
            name, prompts, settings, title=title, shifts=shifts, members=members
        )
        by_id = {prompt.id: prompt for prompt in prompts}
        asked = [by_id[prompt_id] for prompt_id in drawn.table["prompt_id"].to_pylist()]
        return drawn, Answers(prompts=asked, texts=drawn.texts, tokens=drawn.tokens)

    def _of_members(self, weights: Sequence[float] | Floats) -> tuple[float, ...]:
        """The weights with a 0 for the reference, if only those of the policies are given."""
        weights_M = [float(weight) for weight in weights]
        return (*weights_M, *[0.0] * (self._spec.num_members - len(weights_M)))

    def draw_round(self, index: int, weights_K: Floats) -> Batch:
        """Draws the responses of one round of the mixture sampler.

        Raises: FitError if the engine measures nothing while it draws.
        """
        batch = self.draw(
            weights_K,
            self.round_prompts(index),
            seed=index,
            title=f"round {index + 1}",
            mixing=self._settings.mixing,
        )
        if not np.isfinite(batch.measured.jacobian_per_prompt()).all():
            raise FitError(
                "the engine did not measure the policies while it drew responses, and "
                "--sampler mixture needs that; use --sampler sequence"
            )
        return batch

    def finish(self) -> None:
        """Ends the progress of sampling and scoring."""
        self._draws.finish()

    def round_prompts(self, index: int) -> list[Prompt]:
        """The prompts of a round: the next ones of an endless shuffled deck."""
        size = min(self._settings.round_prompts, len(self._prompts))
        rng = np.random.default_rng(self._settings.descent.seed)
        deck: list[int] = []
        while len(deck) < (index + 1) * size:
            deck += rng.permutation(len(self._prompts)).tolist()
        chosen = dict.fromkeys(deck[index * size : (index + 1) * size])
        return [self._prompts[position] for position in chosen]


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
        if settings.sampler == "reference" and spec.reference is None:
            raise FitError(
                "the reference sampler draws from the reference policy, and none was given; "
                "add --reference NAME=MODEL or use --sampler mixture or sequence"
            )
        self.spec, self.prompts, self.settings = spec, list(prompts), settings
        self.content_hashes = content_hashes
        self._progress = Progress(quiet=quiet)
        self._sampling = Sampling(
            spec=spec,
            prompts=prompts,
            settings=settings,
            engine=engine,
            content_hashes=content_hashes,
            cache=cache,
            progress=self._progress,
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
        fresh = self._sampling.draw(
            found.weights_K,
            self.prompts,
            seed=EVALUATION_SEED,
            title="measure",
            mixing=self.settings.mixing,
        )
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
            progress=self._progress,
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
