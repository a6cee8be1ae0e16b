"""The fit job: draw, score, descend, certify; the only file that knows all of them.

Two samplers fit two different things. `mixture`: the token-level mixture that is served, on its
own samples, round by round. `reference`: the sequence-level product of the paper, from one sample
of the reference policy. Either way the KLs of the *deployed* mixture are measured last, on fresh
responses.

Everything drawn is kept under the cache folder, named by the hash of all that decides it: a killed
fit goes on, a repeated one costs nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from prefmix.mixing.spec import MixtureSpec
from prefmix.weights.engines.local import Engine
from prefmix.weights.engines.progress import Progress
from prefmix.weights.engines.prompts import Prompt, hash_of_prompts
from prefmix.weights.fit import score_table
from prefmix.weights.fit.certificate import MAX_SPREAD, bootstrap_means, certify, gap_of_means
from prefmix.weights.fit.draws import DrawSettings, draw
from prefmix.weights.fit.mirror_descent import Descent, restarts
from prefmix.weights.fit.objective import Floats, Responses
from prefmix.weights.fit.on_policy import OnPolicyFit, fit_on_policy, log_ratio_per_prompt
from prefmix.weights.fit.result import Deployed, FitError, FitResult, FitSettings
from prefmix.weights.fit.score_table import ScoreTable

EVALUATION_SEED = 777_000
"""Added to the seed for the responses that judge a fit, which must not be those that made it."""


class FitJob:
    """One fit over an engine. `run` does it all."""

    def __init__(
        self,
        *,
        spec: MixtureSpec,
        prompts: Sequence[Prompt],
        settings: FitSettings,
        engine: Callable[[], Engine],
        fingerprints: dict[str, str],
        cache: Path,
        quiet: bool = False,
    ) -> None:
        """Args:
        spec: policies, and the reference if the sampler needs it.
        prompts: what to fit on.
        settings: how.
        engine: makes the engine; called once, and not at all if everything is cached.
        fingerprints: content hash of each member, part of the cache's names.
        cache: folder of everything drawn.
        quiet: show no progress.
        """
        if settings.sampler == "reference" and spec.reference is None:
            raise FitError(
                "the reference sampler draws from the reference policy, and none was given; "
                "add --reference NAME=MODEL or use --sampler mixture"
            )
        self.spec, self.prompts, self.settings = spec, list(prompts), settings
        self.fingerprints, self.cache = fingerprints, cache
        self._make_engine = engine
        self._progress = Progress(quiet=quiet)
        total = self._num_responses
        self._sampling = self._progress.stage("sample", total, "responses")
        self._scoring = self._progress.stage("score", total * len(spec.policies), "responses")

    @cached_property
    def _engine(self) -> Engine:
        return self._make_engine()

    def run(self) -> FitResult:
        """Fits, certifies and measures."""
        if self.settings.importances is not None:
            result = self._fixed()
        else:
            is_reference = self.settings.sampler == "reference"
            result = self._reference() if is_reference else self._mixture()
        self._sampling.finish()
        self._scoring.finish()
        return result

    @property
    def _num_responses(self) -> int:
        """Responses that the whole fit draws; each is sampled once and scored K times."""
        num_prompts = len(self.prompts)
        fitted = 0
        if self.settings.importances is None:
            per_round = min(self.settings.round_prompts, num_prompts)
            is_mixture = self.settings.sampler == "mixture"
            fitted = per_round * self.settings.num_rounds if is_mixture else num_prompts
        return (fitted + num_prompts) * self.settings.num_responses

    def _mixture(self) -> FitResult:
        def one_round(index: int, weights_K: Floats) -> Responses:
            prompts = self._round_prompts(index)
            return self._draw(
                weights_K, prompts, seed=index, title=f"round {index + 1}"
            ).responses()

        fit = fit_on_policy(
            one_round,
            num_policies=len(self.spec.policies),
            num_rounds=self.settings.num_rounds,
            step_size=self.settings.round_step_size,
            min_weight=self.settings.descent.min_weight,
        )
        deployed = self.measure(fit.weights_K)
        return FitResult(
            names=self.spec.policy_names,
            weights_K=fit.weights_K,
            fitted="mixture (token level)",
            path_TK=fit.path_TK,
            rounds_kl_TK=fit.kl_TK,
            certificate=None,
            deployed=deployed,
            verdict=_mixture_verdict(fit, deployed),
            min_weight=self.settings.descent.min_weight,
        )

    def _reference(self) -> FitResult:
        reference_M = [float(member == self.spec.reference) for member in self.spec.members]
        table = self._draw(reference_M, self.prompts, seed=0, title="reference")
        found = fit_table(table, self.settings, progress=self._progress)
        return _with_deployed(found, self.measure(found.weights_K))

    def _fixed(self) -> FitResult:
        weights_K = importances_to_weights(self.settings.importances or {}, self.spec.policy_names)
        deployed = self.measure(weights_K)
        return FitResult(
            names=self.spec.policy_names,
            weights_K=weights_K,
            fitted="fixed importances",
            path_TK=weights_K[None, :],
            rounds_kl_TK=None,
            certificate=None,
            deployed=deployed,
            verdict="the importances were given, nothing was fitted",
        )

    def measure(self, weights_K: Floats) -> Deployed:
        """The KLs of the served mixture at some weights, on responses drawn for this only."""
        table = self._draw(weights_K, self.prompts, seed=EVALUATION_SEED, title="measure")
        log_ratio_PK = log_ratio_per_prompt(table.responses())
        is_fitted = self.settings.importances is None
        kl_BK = bootstrap_means(-log_ratio_PK, seed=0, progress=self._progress)
        gap, gap_interval = gap_of_means(
            -log_ratio_PK.mean(axis=0),
            kl_BK,
            weights_K,
            min_weight=self.settings.descent.min_weight if is_fitted else 0.0,
        )
        low_K, high_K = np.quantile(kl_BK, [0.025, 0.975], axis=0)
        kl_K = -log_ratio_PK.mean(axis=0)
        names = self.spec.policy_names
        return Deployed(
            kl=dict(zip(names, kl_K.tolist(), strict=True)),
            kl_interval={
                name: (float(low), float(high))
                for name, low, high in zip(names, low_K, high_K, strict=True)
            },
            gap=gap,
            gap_interval=gap_interval,
            num_responses=len(table.num_tokens_N),
            mean_tokens=float(table.num_tokens_N.mean()),
        )

    def _round_prompts(self, index: int) -> list[Prompt]:
        """Each round's prompts: the next ones of an endless shuffled deck."""
        size = min(self.settings.round_prompts, len(self.prompts))
        rng = np.random.default_rng(self.settings.descent.seed)
        deck: list[int] = []
        while len(deck) < (index + 1) * size:
            deck += rng.permutation(len(self.prompts)).tolist()
        chosen = dict.fromkeys(deck[index * size : (index + 1) * size])
        return [self.prompts[position] for position in chosen]

    def _draw(
        self, weights: Sequence[float] | Floats, prompts: Sequence[Prompt], *, seed: int, title: str
    ) -> ScoreTable:
        weights_M = [float(weight) for weight in weights]
        weights_M += [0.0] * (self.spec.num_members - len(weights_M))
        settings = DrawSettings(
            weights_M=tuple(weights_M),
            num_responses=self.settings.num_responses,
            max_tokens=self.settings.max_tokens,
            seed=self.settings.descent.seed * 1_000 + seed,
        )
        table = draw(
            self.cache / self._name_of(settings, prompts),
            prompts=prompts,
            settings=settings,
            spec=self.spec,
            engine=lambda: self._engine,
            members=self.spec.policy_names,
            sampling=self._sampling,
            scoring=self._scoring,
            title=title,
        )
        return score_table.check(table, source=title, policies=self.spec.policy_names)

    def _name_of(self, settings: DrawSettings, prompts: Sequence[Prompt]) -> str:
        decides = [asdict(settings), self.fingerprints, hash_of_prompts(prompts)]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:20]


def fit_table(
    table: ScoreTable,
    settings: FitSettings,
    *,
    beta: float | None = None,
    progress: Progress | None = None,
) -> FitResult:
    """Fits a score table: the reference sampler's last part, or a table from outside.

    Args:
      table: the scores.
      settings: how to fit.
      beta: the KL coefficient of a table of rewards, and of no other.
      progress: where the stages are shown; None is standard error.
    Raises: FitError, ScoreTableError.
    """
    progress = progress or Progress()
    responses = table.responses(beta=beta)
    if (responses.num_responses_P < 2).any() and not table.in_reward_form:
        raise FitError(
            "some prompts have a single response, which makes the objective linear and the answer "
            "a vertex; score at least 2 responses a prompt, better 16"
        )
    if settings.importances is not None:
        # Given weights know no floor.
        settings = replace(settings, descent=replace(settings.descent, min_weight=0.0))
        weights_K = importances_to_weights(settings.importances or {}, table.names)
        runs = [Descent(weights_K=weights_K, path_TK=weights_K[None, :])]
    else:
        with progress.stage("descend", settings.descent.num_steps, "steps").working() as stage:
            runs = restarts(
                responses,
                settings.descent,
                num_restarts=settings.num_restarts,
                advance=stage.advance,
            )
            stage.finish()
    weights_K = np.mean([run.weights_K for run in runs], axis=0)
    certificate = certify(
        responses,
        weights_K,
        names=table.names,
        runs=runs,
        settings=settings.descent,
        lengths_PJ=table.lengths(),
        progress=progress,
    )
    fitted = "rewards" if table.in_reward_form else "reference (sequence level)"
    return FitResult(
        names=table.names,
        weights_K=weights_K,
        fitted="fixed importances" if settings.importances is not None else fitted,
        path_TK=runs[0].path_TK,
        rounds_kl_TK=None,
        certificate=certificate,
        deployed=None,
        verdict=certificate.verdict,
        in_reward_form=table.in_reward_form,
        min_weight=settings.descent.min_weight,
    )


def importances_to_weights(importances: dict[str, float], names: Sequence[str]) -> Floats:
    """Fixed user importances as weights: their share of the sum (Lemma 3.9 of the paper, the
    MORLHF case, where mixing at the importances is optimal and there is nothing to fit)."""
    unknown = [name for name in importances if name not in names]
    if unknown:
        raise FitError(
            f"importance of {unknown[0]!r}: no such policy; there are: {', '.join(names)}"
        )
    values_K = np.array([importances.get(name, 0.0) for name in names], dtype=np.float64)
    if not (np.isfinite(values_K).all() and (values_K >= 0).all() and values_K.sum() > 0):
        raise FitError(
            f"importances are {importances}; they must be finite, non-negative and not all 0"
        )
    share_K: Floats = values_K / values_K.sum()
    return share_K


def _with_deployed(found: FitResult, deployed: Deployed) -> FitResult:
    verdict = found.verdict
    if verdict == "trustworthy":
        kls = [kl for name, kl in deployed.kl.items() if name not in found.at_floor]
        spread = max(kls, default=0.0) - min(kls, default=0.0)
        verdict += (
            " for the sequence-level objective; the deployed mixture's KLs differ by "
            f"{spread:.2f} nats (--sampler mixture fits those)"
        )
    return replace(found, deployed=deployed, verdict=verdict)


def _mixture_verdict(fit: OnPolicyFit, deployed: Deployed) -> str:
    if fit.unrest > MAX_SPREAD:
        return (
            f"not settled: the averaged weights still move (by {fit.unrest:.3f}); "
            "take more rounds (--rounds), prompts or responses"
        )
    if deployed.gap_interval[0] > 0.1 * max(deployed.kl.values()):
        return (
            f"not converged: the deployed KLs differ by {deployed.gap:.2f} nats; take more rounds"
        )
    return "trustworthy"
