"""Hooks at the sampler, of either model runner: statistics of drawn tokens, codes of broken rows.

V1's sampler is a torch module with hooks, and its runner's output has a field for counts of NaN
that carries the codes. V2's sampler has no hooks and is wrapped.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def pass_tokens_to_statistics(runner: Any, *, uses_v2: bool) -> None:
    """Makes the runner pass each step's drawn tokens to the model's statistics. Call it once."""
    if uses_v2:
        runner.sampler = WatchedSampler.of(runner)
    else:
        runner.sampler.register_forward_hook(_measure_after_sampling(runner))


def report_broken_rows(runner: Any, *, uses_v2: bool) -> None:
    """Makes the runner send the codes of broken rows to the scheduler. Call it once."""
    if uses_v2:
        runner.sampler = WatchedSampler.of(runner)
    else:
        runner.sample_tokens = _with_broken_rows(runner)


def _measure_after_sampling(runner: Any) -> Any:
    """A hook of V1's sampler that passes the drawn tokens to the statistics."""

    def hook(sampler: Any, args: Any, output: Any) -> None:
        statistics, batch = runner.model.step.statistics, runner.input_batch
        if statistics.kept is None:  # this step is not measured
            return
        num_rows = batch.num_reqs
        is_drawn = ~runner.discard_request_mask.np[:num_rows]
        statistics.measure_tokens(output.sampled_token_ids, batch.req_ids[:num_rows], is_drawn)

    return hook


def _with_broken_rows(runner: Any) -> Any:
    """V1's `sample_tokens`, wrapped so that the output field of vLLM's NaN counts carries the codes
    of broken rows."""
    sample_tokens = runner.sample_tokens

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        output = sample_tokens(*args, **kwargs)
        codes_N = runner.model.step.broken_rows_N
        if codes_N is not None:
            output.num_nans_in_logits = dict(zip(output.req_ids, codes_N.tolist(), strict=True))
        return output

    return wrapped


class WatchedSampler:
    """Wraps V2's sampler, which is no torch module and has no hooks: adds the codes of broken rows,
    and passes the drawn tokens to the statistics."""

    @classmethod
    def of(cls, runner: Any) -> WatchedSampler:
        """Wraps the runner's sampler, unless it is wrapped already."""
        sampler = runner.sampler
        return sampler if isinstance(sampler, cls) else cls(sampler, runner.model)

    def __init__(self, sampler: Any, model: Any) -> None:
        self._sampler = sampler
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    def __call__(self, logits: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        output = self._sampler(logits, batch, *args, **kwargs)
        step = self._model.step
        if step.broken_rows_N is not None:
            output.num_nans = step.broken_rows_N  # goes to the host with the tokens
        if step.statistics is None or step.statistics.kept is None:
            return output
        ends = batch.num_computed_tokens_np + batch.num_scheduled_tokens
        is_drawn: np.ndarray = ends[: batch.num_reqs] >= batch.prefill_len_np[: batch.num_reqs]
        step.statistics.measure_tokens(output.sampled_token_ids, batch.req_ids, is_drawn)
        return output
