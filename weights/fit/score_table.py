"""The score table: one row a response, with its log-probability under every policy.

    prompt_id  response_id  num_tokens  logprob_reference  logprob_<policy> ...  [proposal_logprob]

The format is Parquet; log-probabilities are natural, of whole responses. Responses are drawn from
the reference, or from the proposal whose log-probabilities stand in `proposal_logprob`. In reward
form the columns are `reward_<name>` instead, without log-probabilities.

Shapes: N responses, K policies or rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prefmix.mixing.name_list import listed
from prefmix.weights.fit.sequence_level.objective import Floats, Responses, from_flat

LOGPROB, REWARD, PROPOSAL = "logprob_", "reward_", "proposal_logprob"
KL, ENTROPY = "kl_", "entropy"
"""Sums over tokens, in nats, that an engine measured while it drew the responses; optional."""
REFERENCE_COLUMN = f"{LOGPROB}reference"


class ScoreTableError(ValueError):
    """A score table that cannot be fitted; the message names file, column, row and value."""


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """A checked score table in memory."""

    names: tuple[str, ...]
    """The K policies, or rewards in reward form."""
    prompt_ids_N: NDArray[Any]
    """Prompt id of each response, as given."""
    num_tokens_N: NDArray[np.int64]
    """Tokens of each response."""
    scores_NK: Floats
    """Log-probabilities of whole responses, or rewards."""
    proposal_N: Floats | None
    """Log-probability of each response under its proposal; None in reward form."""

    @property
    def in_reward_form(self) -> bool:
        """True if the scores are rewards."""
        return self.proposal_N is None

    def responses(self, *, beta: float | None = None) -> Responses:
        """The log ratios of the objective, grouped by prompt.

        In reward form these are of the policies that the rewards define: proportional to the
        reference e^(reward / beta), normalised over each prompt's responses.

        Args:
          beta: the KL coefficient; required in reward form, and refused otherwise.
        Raises: ScoreTableError for a beta that is missing or not wanted.
        """
        if self.proposal_N is None:
            if beta is None or not beta > 0:
                raise ScoreTableError(
                    f"beta is {beta}; a table of rewards needs a positive --beta, the KL "
                    "coefficient the policies would be trained with"
                )
            log_ratios_NK = self.scores_NK / beta
        else:
            if beta is not None:
                raise ScoreTableError(
                    "beta was given, but the table holds log-probabilities; "
                    "leave --beta out, it is part of the trained policies"
                )
            log_ratios_NK = self.scores_NK - self.proposal_N[:, None]
        _, prompt_of_N = np.unique(self.prompt_ids_N, return_inverse=True)
        responses = from_flat(log_ratios_NK, prompt_of_N)
        return responses.normalised() if self.in_reward_form else responses

    def lengths(self) -> Floats:
        """Tokens of each response in the order of `responses`, [P, J]; NaN in the padding."""
        _, prompt_of_N = np.unique(self.prompt_ids_N, return_inverse=True)
        grouped = from_flat(self.num_tokens_N[:, None].astype(np.float64), prompt_of_N)
        return np.where(np.isfinite(grouped.log_mass_PJ), grouped.log_ratios_PJK[:, :, 0], np.nan)


def read(path: Path, *, policies: Sequence[str] | None = None) -> ScoreTable:
    """Reads and checks a score table.

    Args:
      path: a Parquet file.
      policies: the policies that the table must score, in the wanted order; None takes all.
    Raises: ScoreTableError.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0]
        raise ScoreTableError(f"{path}: cannot be read as Parquet ({reason})") from None
    return check(table, source=str(path), policies=policies)


def check(table: Any, *, source: str, policies: Sequence[str] | None = None) -> ScoreTable:
    """Turns an Arrow table into a ScoreTable. Raises: ScoreTableError naming `source`."""
    columns = list(table.column_names)
    for needed in ("prompt_id", "response_id", "num_tokens"):
        if needed not in columns:
            raise ScoreTableError(
                f"{source}: column {needed!r} is missing; it has: {listed(columns)}"
            )
    if table.num_rows == 0:
        raise ScoreTableError(f"{source}: no rows; a fit needs prompts with scored responses")
    names, prefix = _scored_names(columns, source=source, policies=policies)
    wanted = [f"{prefix}{name}" for name in names]
    scores_NK = np.stack([_finite(table, column, source) for column in wanted], axis=1)
    proposal_N = None
    if prefix == LOGPROB:
        proposal = PROPOSAL if PROPOSAL in columns else REFERENCE_COLUMN
        if proposal not in columns:
            raise ScoreTableError(
                f"{source}: column {REFERENCE_COLUMN!r} is missing; it holds the log-probability "
                "of each response under the policy it was sampled from"
            )
        proposal_N = _finite(table, proposal, source)
    prompt_ids_N = table["prompt_id"].to_numpy(zero_copy_only=False)
    _check_identity(prompt_ids_N, table["response_id"].to_numpy(zero_copy_only=False), source)
    return ScoreTable(
        names=names,
        prompt_ids_N=prompt_ids_N,
        num_tokens_N=_finite(table, "num_tokens", source).astype(np.int64),
        scores_NK=scores_NK,
        proposal_N=proposal_N,
    )


def _scored_names(
    columns: Sequence[str], *, source: str, policies: Sequence[str] | None
) -> tuple[tuple[str, ...], str]:
    """(names, column prefix) of the scored policies or rewards; refuses unknown columns."""
    plain = {"prompt_id", "response_id", "num_tokens", REFERENCE_COLUMN, PROPOSAL}
    scored = [column for column in columns if column not in plain]
    rewards = [column for column in scored if column.startswith(REWARD)]
    prefix = REWARD if rewards else LOGPROB
    for column in scored:
        if not column.startswith(prefix):
            raise ScoreTableError(
                f"{source}: column {column!r} is not part of a score table; allowed beside the "
                f"ids are {LOGPROB}<policy> or {REWARD}<name> (not both), and {PROPOSAL}"
            )
    names = tuple(column.removeprefix(prefix) for column in scored)
    if policies is None:
        if not names:
            raise ScoreTableError(f"{source}: no {LOGPROB}<policy> column; nothing to fit")
        return names, prefix
    for name in policies:
        if name not in names:
            raise ScoreTableError(
                f"{source}: column {prefix + name!r} is missing; it scores: {listed(names)}"
            )
    for name in names:
        if name not in policies:
            raise ScoreTableError(
                f"{source}: it scores {name!r}, which is not among the policies to fit: "
                f"{listed(policies)}"
            )
    return tuple(policies), prefix


def _finite(table: Any, column: str, source: str) -> Floats:
    try:
        values: Floats = table[column].to_numpy(zero_copy_only=False).astype(np.float64)
    except (TypeError, ValueError):
        raise ScoreTableError(
            f"{source}: column {column!r} holds {table[column].type}, expected numbers"
        ) from None
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        remedy = (
            "a response that a policy cannot produce has no log ratio; drop it or score it again"
        )
        raise ScoreTableError(
            f"{source}: column {column!r}, row {bad[0]}, is {values[bad[0]]}, expected a finite "
            f"number ({len(bad)} such rows); {remedy}"
        )
    return values


def _check_identity(prompt_ids_N: NDArray[Any], response_ids_N: NDArray[Any], source: str) -> None:
    seen: set[tuple[Any, Any]] = set()
    for row, pair in enumerate(zip(prompt_ids_N.tolist(), response_ids_N.tolist(), strict=True)):
        if pair in seen:
            raise ScoreTableError(
                f"{source}: row {row} repeats prompt_id {pair[0]!r} with response_id {pair[1]!r}; "
                "each response has one row"
            )
        seen.add(pair)
