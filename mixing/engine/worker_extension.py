"""Methods of the engine's workers that the front process calls by vLLM's RPC.

Source of the interfaces: parallel_config.worker_extension_cls and collective_rpc (vLLM 0.32). The
methods become part of vLLM's worker class, so their names begin with `prefmix_`.
"""

from __future__ import annotations

import signal
from typing import Any

import numpy as np

from prefmix.mixing.batch.statistics import MixtureStatisticsCollector
from prefmix.mixing.workarounds.zero_kv_blocks import cpu_block_zeroer


class MixtureWorker:
    """Mixed into vLLM's worker."""

    model_runner: Any
    vllm_config: Any

    def prefmix_ignore_interrupts(self) -> None:
        """Ignores Ctrl-C, which a terminal sends to every process. The front process ends this one
        by SIGTERM, after the requests under way have ended."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def prefmix_observe(self, every: int) -> None:
        """Starts the statistics: of requests that ask for them, and of all tokens of every n-th
        step."""
        runner, model = self.model_runner, self.model_runner.model
        if model.step.statistics is None:
            if self.vllm_config.use_v2_model_runner:
                runner.sampler = WatchedSampler.of(runner)
            else:
                runner.sampler.register_forward_hook(_after_sampling(runner))
        model.step.statistics = MixtureStatisticsCollector(model, every=every)

    def prefmix_check_rows(self) -> None:
        """Starts to report broken rows (prefmix.mixing.batch.broken_rows)."""
        runner, step = self.model_runner, self.model_runner.model.step
        if step.checks_rows or not step.can_skip:  # another scheduler would not end the requests
            return
        if self.vllm_config.use_v2_model_runner:
            runner.sampler = WatchedSampler.of(runner)
        else:
            runner.sample_tokens = _with_broken_rows(runner)
            runner._zero_block_ids = cpu_block_zeroer(runner)
        step.checks_rows = True

    def prefmix_take_sample(self) -> dict[str, Any] | None:
        """See MixtureStatisticsCollector.take_sample."""
        statistics = self.model_runner.model.step.statistics
        return None if statistics is None else statistics.take_sample()

    def prefmix_take_request(
        self, key: str, sample: int | None = None
    ) -> dict[str, list[list[float]]]:
        """See MixtureStatisticsCollector.take_request. Empty on ranks that do not gather logits."""
        statistics = self.model_runner.model.step.statistics
        return {} if statistics is None else statistics.take_request(key, sample)

    def prefmix_sizes(self) -> dict[str, list[int]]:
        """Bytes on this rank: of parameters per member, then of those that several members use; of
        KV cache per member and token."""
        from prefmix.mixing.models.sizes import kv_bytes_per_token

        model = self.model_runner.model
        return {
            "parameters": model.parameter_bytes(),
            "kv_per_token": kv_bytes_per_token(model, self.vllm_config),
        }


def _after_sampling(runner: Any) -> Any:
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
