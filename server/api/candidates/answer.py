"""The pick of one answer among candidates, and vLLM's answer reduced to what is picked.

Each choice of the answer then has

    {"num_candidates": 8, "ess": 5.31, "log_partition": -2.104}

and a `warning` if the effective number `ess` is low.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from prefmix.mixing.candidates import Picked, floor, pick
from prefmix.server.api.candidates.wish import FIELD
from prefmix.server.http.errors import RequestError

Rows = Sequence[Sequence[float]]
"""Rows of figures, one a token (as MixtureStatisticsCollector.take_request returns them)."""

_TOKEN_IDS = ("token_ids", "prompt_token_ids")


class FiguresLostError(RequestError):
    """503: the engine has not kept the figures by which a candidate is picked."""

    status = HTTPStatus.SERVICE_UNAVAILABLE


def with_picked(
    body: dict[str, Any],
    figures: Sequence[Mapping[int, Rows]],
    num_candidates: int,
    *,
    seed: int | None,
    fields_of: Callable[[Rows, float], Mapping[str, Any]],
    shows_token_ids: bool,
) -> float:
    """Leaves one of the candidates of each choice in vLLM's answer.

    Its `usage` stays as it is: all candidates have been generated.

    Args:
      body: vLLM's answer, with the token ids of each choice.
      figures: of each prompt, the rows of each sample; the engine may have measured a few tokens
        more than a choice has, after a stop string.
      num_candidates: the number of candidates for each choice.
      seed: of the request.
      fields_of: further fields of a choice, from its rows and effective number.
      shows_token_ids: true leaves the token ids in the answer.
    Returns: the smallest effective number of candidates of a choice.
    Raises: FiguresLostError.
    """
    choices = sorted(body["choices"], key=lambda choice: choice["index"])
    num_samples = len(choices) // len(figures)
    kept: list[dict[str, Any]] = []
    sizes: list[float] = []
    for start in range(0, len(choices), num_candidates):
        prompt, sample = divmod(start, num_samples)
        group = choices[start : start + num_candidates]
        rows = [
            _rows_of(choice, figures[prompt].get(sample + index))
            for index, choice in enumerate(group)
        ]
        picked = pick_group(rows, seed=seed, place=sample // num_candidates)
        choice = group[picked.index]
        choice["index"] = len(kept)
        choice[FIELD] = describe_pick(picked)
        choice.update(fields_of(rows[picked.index], choice[FIELD]["ess"]))
        kept.append(choice)
        sizes.append(picked.ess)
    for shown in () if shows_token_ids else (body, *kept):
        shown.update({field: None for field in _TOKEN_IDS if field in shown})
    body["choices"] = kept
    return min(sizes)


def _rows_of(choice: Mapping[str, Any], rows: Rows | None) -> Rows:
    num_tokens = len(choice["token_ids"])
    if rows is None or len(rows) < num_tokens:
        raise FiguresLostError(
            "the engine has not kept the figures by which one of the candidates is picked, as the "
            "server is ending or measures too many requests; ask again"
        )
    return rows[:num_tokens]


def pick_group(rows: Sequence[Rows], *, seed: int | None, place: int) -> Picked:
    """Picks one of an answer's candidates.

    Args:
      rows: of each candidate, without those of tokens that are no part of it.
      seed: of the request.
      place: of the answer among those to one prompt.
    """
    log_partitions = [sum(row[0] for row in candidate) for candidate in rows]
    return pick(log_partitions, seed=seed, place=place)


def describe_pick(picked: Picked) -> dict[str, Any]:
    """Computes the field of one choice."""
    described: dict[str, Any] = {
        "num_candidates": picked.num_candidates,
        "ess": round(picked.ess, 6),
        "log_partition": round(picked.log_partition, 6),
    }
    if picked.is_low:
        described["warning"] = (
            f"the {picked.num_candidates} candidates count as {picked.ess:.2f}, fewer than "
            f"{floor(picked.num_candidates):.2f}: the answer is hardly one of the sequence-level "
            "mixture; ask for more candidates, for a shorter answer, or for weights under which "
            "the policies agree more"
        )
    return described
