"""The sequence-level fit: mirror descent on a score table, and the certificate of its answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from prefmix.weights.engines.progress import Progress
from prefmix.weights.fit.result import NOTHING_FITTED, FitResult
from prefmix.weights.fit.score_table import ScoreTable
from prefmix.weights.fit.sequence_level.certificate import certify, corrected
from prefmix.weights.fit.sequence_level.mirror_descent import Descent, restarts
from prefmix.weights.fit.settings import FitError, FitSettings, importances_to_weights


def fit_table(
    table: ScoreTable,
    settings: FitSettings,
    *,
    beta: float | None = None,
    fitted: str | None = None,
    progress: Progress | None = None,
) -> FitResult:
    """Fits weights to scored responses: those of the reference sampler, or a table from outside.

    Args:
      table: the scores.
      settings: steps, batches, restarts; or the importances that are certified instead.
      beta: the KL coefficient of a table of rewards, and of no other.
      fitted: the objective's name in the result; None takes it from the table.
      progress: where the stages are shown; None is standard error.
    Raises: FitError, ScoreTableError.
    """
    progress = progress or Progress()
    settings.check_floor(len(table.names))
    responses = table.responses(beta=beta)
    if (responses.num_responses_P < 2).any():
        raise FitError(
            "some prompts have a single response, which makes the objective linear and the answer "
            "a vertex; score at least 2 responses a prompt, better 16"
        )
    fitted = fitted or ("rewards" if table.in_reward_form else "reference (sequence level)")
    correction_K = np.zeros(len(table.names))
    if settings.importances is not None:
        fitted = "fixed importances"
        # No floor holds for weights that were given.
        settings = replace(settings, descent=replace(settings.descent, min_weight=0.0))
        weights_K = importances_to_weights(settings.importances or {}, table.names)
        runs: list[Descent] = []
    else:
        with progress.stage("descend", settings.descent.num_steps, "steps").working() as stage:
            runs = restarts(
                responses,
                settings.descent,
                num_restarts=settings.num_restarts,
                advance=stage.advance,
            )
            stage.finish()
        plain_K = np.mean([run.weights_K for run in runs], axis=0)
        correction_K = corrected(responses, plain_K, settings.descent) - plain_K
        weights_K = plain_K + correction_K if settings.descent.is_corrected else plain_K
    certificate = certify(
        responses,
        weights_K,
        names=table.names,
        runs=runs,
        settings=settings.descent,
        lengths_PJ=table.lengths(),
        correction_K=correction_K,
        progress=progress,
    )
    return FitResult(
        names=table.names,
        weights_K=weights_K,
        fitted=fitted,
        path_TK=runs[0].path_TK if runs else weights_K[None, :],
        rounds_kl_TK=None,
        certificate=certificate,
        deployed=None,
        verdict=certificate.verdict if runs else NOTHING_FITTED,
        in_reward_form=table.in_reward_form,
        averages=settings.descent.averages,
        is_corrected=settings.descent.is_corrected,
        min_weight=settings.descent.min_weight,
    )
