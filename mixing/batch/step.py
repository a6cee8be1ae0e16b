"""The step under way: which members run, what is measured, and the coefficients of its tokens.

`Step` holds the state that a forward pass and the mixing after it share. `StepWeights` is the one
interface to vLLM's two model runners, which keep running requests in different ways:
prefmix.mixing.batch.weights_v1 and prefmix.mixing.batch.weights_v2 implement it.

Shapes: T tokens, N logits rows, M members, C coefficients of a request, V vocabulary, D_m hidden
width of member m.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from prefmix.mixing.batch.broken_rows import find_broken_rows
from prefmix.mixing.batch.request_mixing import RequestMixing
from prefmix.mixing.batch.statistics import MixtureStatisticsCollector
from prefmix.mixing.kernels.one_pass import OnePass, mix_in_one_pass
from prefmix.mixing.prompts.member_rows import MemberRows
from prefmix.mixing.prompts.step_heads import StepHeads

if TYPE_CHECKING:
    from prefmix.mixing.batch.needed_rows_v2 import NeededRows

_NOT_TIMED = nullcontext()


class Step:
    """State of one step. The model keeps it in an object of its own, because setting an attribute
    of a torch module takes several microseconds."""

    __slots__ = (
        "_began",
        "_is_checked",
        "active",
        "broken_rows_N",
        "can_skip",
        "checks_rows",
        "heads",
        "logits",
        "num_members",
        "one_pass",
        "rows",
        "runs_everyone",
        "statistics",
    )

    def __init__(self, *, num_members: int, can_skip: bool) -> None:
        """Args:
        can_skip: True if members without weight need not run.
        """
        self.num_members = num_members
        self.can_skip = can_skip
        self.runs_everyone = False
        """True if all members run in each step, weighed or not."""
        self.active = [True] * num_members
        """Per member: True if it runs."""
        self.statistics: MixtureStatisticsCollector | None = None
        """Measures the mixture; None until prefmix.mixing.engine.worker_extension starts it."""
        self.checks_rows = False
        """True if the scheduler ends requests whose rows are broken
        (prefmix.mixing.engine.worker_extension)."""
        self.broken_rows_N: torch.Tensor | None = None
        """Codes of the rows that the step draws tokens from (prefmix.mixing.batch.broken_rows);
        None if all rows are sound."""
        self.heads: StepHeads | None = None
        """The policies' own prompts; None if no request of the step has any."""
        self.rows: MemberRows | None = None
        """The same where rows stay on the device; None of servers without such prompts."""
        self.logits: list[torch.Tensor | None] | None = None
        """The members' logits of the rows that are being mixed, if the mixing computed them."""
        self.one_pass: OnePass | None = None
        """The result of a GPU's pass over these logits."""
        self._is_checked = False
        self._began: Any = None
        """The time at which a step of the sample began; None once its pass has been timed."""

    @property
    def members(self) -> list[int]:
        """Indices of the members that run."""
        return [member for member, active in enumerate(self.active) if active]

    @property
    def everyone_runs(self) -> bool:
        """True if no member is skipped."""
        return all(self.active)

    def begin(self, active_M: list[bool], requests: Sequence[RequestMixing]) -> None:
        """Starts a step of a batch.

        Args:
          active_M: per member, True if it runs for a request of the batch.
          requests: of the batch, in its order.
        """
        if self.can_skip and not self.runs_everyone:
            self.active = active_M
        self._is_checked, self.broken_rows_N = False, None
        self._began = None
        if self.statistics is not None:
            self.statistics.begin_step(requests)
            if self.statistics.is_sampled:
                self._began = self.statistics.now()

    def begin_without_batch(self) -> None:
        """Starts a pass without requests, as in profiling, warm-up and graph capture: all members
        run, nothing is measured."""
        self.active = [True] * self.num_members

    def timed(self, part: str) -> AbstractContextManager[None]:
        """Measures the time of a part of the step, if the step is one of the sample."""
        if self.statistics is None or not self.statistics.is_sampled:
            return _NOT_TIMED
        if part == "forward":
            self._began = None
        return self.statistics.timed(part)

    def keep_hidden(self, hidden: Sequence[torch.Tensor], weights_NM: torch.Tensor) -> None:
        """Keeps what is about to be mixed, if it is what the step draws tokens from, and is
        measured. Args: hidden: per member [N, D_m]."""
        if self.statistics is None or self._is_checked:
            return
        if self._began is not None:  # a CUDA graph has replayed the pass, without any Python
            self.statistics.took("forward", self._began)
            self._began = None
        if self.statistics.wants_logits:
            self.statistics.kept = (hidden, weights_NM, None)

    @property
    def wants_all_logits(self) -> bool:
        """True if the members' logits of all rows that are being mixed will be needed."""
        statistics = self.statistics
        return (
            statistics is not None and statistics.kept is not None and statistics.wants_all_logits
        )

    def keep_logits(self, logits: list[torch.Tensor | None]) -> None:
        """Keeps the members' logits [N, V_m] of the rows that are being mixed, so that statistics
        and row check need not compute them again."""
        self.logits = logits
        if self.statistics is not None:
            self.statistics.keep_logits(logits)

    def mix_in_one_pass(
        self,
        logits: list[torch.Tensor | None],
        weights_NM: torch.Tensor,
        *,
        vocab_size: int,
        scale: Sequence[float] | None = None,
    ) -> torch.Tensor:
        """Mixes the members' logits on a GPU and keeps what the pass over them made for the row
        check and the statistics. Args: those of the kernel."""
        measures = self.statistics is not None and self.statistics.kept is not None
        self.one_pass = mix_in_one_pass(
            logits, weights_NM, vocab_size=vocab_size, scale=scale, measures=measures
        )
        if self.statistics is not None:
            self.statistics.keep_logits(self.one_pass)
        return self.one_pass.mixed_NV

    def check_rows(
        self,
        mixed_NV: torch.Tensor | None,
        hidden: Sequence[torch.Tensor],
        weights_NM: torch.Tensor,
    ) -> None:
        """Finds broken rows in the step's first mixed logits; later calls of a step are for prompt
        logprobs, from which no token is drawn."""
        if self.checks_rows and not self._is_checked and mixed_NV is not None:
            tops_NQ = None if self.one_pass is None else self.one_pass.tops_NQ
            self.broken_rows_N = find_broken_rows(
                mixed_NV, hidden, weights_NM, self.logits, tops_NQ
            )
        self._is_checked = True
        self.forget_logits()

    def forget_logits(self) -> None:
        """Lets go of the logits of rows that are mixed now."""
        self.logits = self.one_pass = None


class StepWeights(ABC):
    """The coefficients of a step's tokens, as the running requests have them
    (prefmix.mixing.batch.request_mixing)."""

    @abstractmethod
    def begin_pass(self, step: Step) -> None:
        """Starts a forward pass: calls `step.begin`, unless the runner did so before the pass."""

    def heads(self, input_ids: torch.Tensor) -> StepHeads | None:
        """The policies' own prompts; None if no request of the step has any.

        Args:
          input_ids: int [T], the tokens of the engine's prompts and answers.
        """
        return None

    def rows(self, num_tokens: int) -> MemberRows | None:
        """Each member's tokens and positions, if the runner lays them out before a pass; None of
        servers whose policies have no prompts of their own. Args: num_tokens: T, with padding."""
        return None

    def needed_rows(self) -> NeededRows | None:
        """The rows that the pass is to run, if the runner has laid out those that the step needs;
        None if each member runs as `Step.members` and `rows` say."""
        return None

    def own_slots(
        self, num_tokens: int, member_of: Callable[[str], int]
    ) -> AbstractContextManager[None]:
        """Within this context each member's layers store keys in slots of the member's own, where
        they are others than the engine's.

        Args:
          num_tokens: T, with padding.
          member_of: the member of a layer, by its name.
        """
        return nullcontext()

    @abstractmethod
    def token_coefficients(self, num_tokens: int) -> torch.Tensor:
        """The coefficients of the pass's tokens.

        Args:
          num_tokens: T, including padding.
        Returns: float32 [T, C], contiguous.
        """
