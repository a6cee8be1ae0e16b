"""The responses of a fit: drawn at some weights and scored, or read from what an earlier run left.

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
from prefmix.weights.engines.engine import Engine
from prefmix.weights.engines.finite_differences import Differences
from prefmix.weights.engines.progress import Progress
from prefmix.weights.engines.prompts import Prompt, hash_of_prompts
from prefmix.weights.fit import score_table
from prefmix.weights.fit.draws import Drawn, Draws, DrawSettings, cache_name
from prefmix.weights.fit.rewards import Answers
from prefmix.weights.fit.score_table import ENTROPY, KL, ScoreTable
from prefmix.weights.fit.sequence_level.objective import Floats
from prefmix.weights.fit.settings import FitError, FitSettings
from prefmix.weights.fit.token_level.on_policy import Measured

EVALUATION_SEED = 777_000
"""Added to the seed for the responses that judge a fit, which must not be those that made it."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Responses of one draw."""

    table: ScoreTable
    measured: Measured
    """The engine's measurements while they were sampled."""
    answers: Answers
    """Row by row of the table."""


@dataclass(frozen=True, kw_only=True)
class FitInputs:
    """All that a fit works on, whatever its objective."""

    spec: MixtureSpec
    """The policies, and the reference if there is one."""
    prompts: Sequence[Prompt]
    settings: FitSettings
    engine: Callable[[], Engine]
    """Makes the engine; called once, and not at all if everything is cached."""
    content_hashes: Mapping[str, str]
    """Content hash of each member, part of the cache's names."""
    cache: Path
    """Folder of everything drawn."""
    quiet: bool = False
    """Show no progress."""


class Sampling:
    """Draws the responses of one fit."""

    def __init__(self, inputs: FitInputs, *, num_responses: int, takes_differences: bool) -> None:
        """Args:
        inputs: the policies, the prompts, and how much is drawn.
        num_responses: responses that the whole fit draws, at most.
        takes_differences: the responses are scored at weights nearby, too.
        Raises: FitError for mixed parameters of full checkpoints, and for too high a floor.
        """
        spec, settings = inputs.spec, inputs.settings
        settings.check_floor(len(spec.policies))
        try:
            check_mixing(settings.mixing, has_base=spec.base is not None)
        except MixingError as error:
            raise FitError(f"--mixing {settings.mixing}: {error}") from None
        if settings.mixing == "parameters" and spec.prompts_sha256 is not None:
            raise FitError(
                "--mixing parameters: mixed parameters are one model, which reads one prompt; fit "
                "logits, or leave the policies' own prompts out"
            )
        self._spec, self._prompts, self._settings = spec, list(inputs.prompts), settings
        self._content_hashes = inputs.content_hashes
        self._takes_differences = takes_differences
        self.progress = Progress(quiet=inputs.quiet)
        self._draws = Draws(
            spec=spec,
            engine=inputs.engine,
            cache=inputs.cache,
            members=spec.policy_names,
            num_responses=num_responses,
            num_shifts=2 * (len(spec.policies) - 1) if takes_differences else 0,
            progress=self.progress,
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
        decides = [asdict(settings), dict(self._content_hashes), hash_of_prompts(prompts)]
        name = cache_name(decides, prompts_sha256=self._spec.prompts_sha256)
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

    def draw_fresh(self, weights_K: Floats) -> Batch:
        """Draws the responses to all prompts that judge a fit, with a seed of their own."""
        return self.draw(
            weights_K,
            self._prompts,
            seed=EVALUATION_SEED,
            title="measure",
            mixing=self._settings.mixing,
        )

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
