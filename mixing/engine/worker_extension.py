"""Methods of the engine's workers that the front process calls by vLLM's RPC.

Source of the interfaces: parallel_config.worker_extension_cls and collective_rpc (vLLM 0.32). The
methods become part of vLLM's worker class, so their names begin with `prefmix_`.
"""

from __future__ import annotations

import signal
from typing import Any

from prefmix.mixing.batch.statistics import MixtureStatisticsCollector
from prefmix.mixing.engine.sampler_hooks import pass_tokens_to_statistics, report_broken_rows


class MixtureWorker:
    """Mixed into vLLM's worker."""

    model_runner: Any
    vllm_config: Any

    def prefmix_ignore_interrupts(self) -> None:
        """Ignores Ctrl-C, which a terminal sends to every process. The front process ends this one
        by SIGTERM, after the requests under way have ended."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def prefmix_expect_compilation(self, is_expected: bool) -> None:
        """See prefmix.mixing.workarounds.late_compilation."""
        from prefmix.mixing.workarounds.late_compilation import expect_compilation

        expect_compilation(is_expected)

    def prefmix_start_statistics(self, every: int) -> None:
        """Starts the statistics: of requests that ask for them, and of all tokens of every n-th
        step."""
        runner, model = self.model_runner, self.model_runner.model
        if model.step.statistics is None:
            pass_tokens_to_statistics(runner, uses_v2=self.vllm_config.use_v2_model_runner)
            if model.device.type == "cuda":
                model.step.statistics = MixtureStatisticsCollector(model, every=0)
                model.step.statistics.warm_up()
        model.step.statistics = MixtureStatisticsCollector(model, every=every)

    def prefmix_check_rows(self) -> None:
        """Starts to report broken rows (prefmix.mixing.batch.broken_rows)."""
        runner, step = self.model_runner, self.model_runner.model.step
        if step.checks_rows or not step.can_skip:  # another scheduler would not end the requests
            return
        report_broken_rows(runner, uses_v2=self.vllm_config.use_v2_model_runner)
        step.checks_rows = True

    def prefmix_forget_step(self) -> None:
        """Forgets a step that ended before its tokens were drawn; either runner would refuse the
        next one."""
        self.model_runner.execute_model_state = None

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

    def prefmix_check_adapters(self) -> list[str]:
        """See prefmix.mixing.engine.adapter_check."""
        from prefmix.mixing.engine.adapter_check import check_adapters

        return check_adapters(self.model_runner.model)

    def prefmix_slot(self, verb: str, values: list[Any]) -> dict[str, Any]:
        """See prefmix.mixing.slots.held.HeldAdapters, whose methods the verbs name."""
        try:
            from prefmix.mixing.engine.adapter_check import check_adapter
            from prefmix.mixing.slots.held import HeldAdapters

            model = self.model_runner.model
            if not hasattr(model, "held_adapters"):
                model.held_adapters = HeldAdapters(model, check=check_adapter)
            found: dict[str, Any] = model.held_adapters.run(verb, values)
            return found
        except Exception as error:  # a lack of files, threads or memory, which may pass
            cause = " ".join(str(error).split()) or type(error).__name__
            whose = f"policy {values[0]!r}: " if verb == "read" else ""
            return {"failure": f"{whose}the engine cannot {verb} an adapter now: {cause:.300}"}

    def prefmix_num_tokens(self) -> int:
        """Number of tokens that every member has."""
        return int(self.model_runner.model.vocab_size)

    def prefmix_sizes(self) -> dict[str, list[int]]:
        """Bytes on this rank: of parameters per member, then of those that several members use; of
        KV cache per member and token."""
        from prefmix.mixing.models.memory_sizes import kv_bytes_per_token

        model = self.model_runner.model
        return {
            "parameters": model.parameter_bytes(),
            "kv_per_token": kv_bytes_per_token(model, self.vllm_config),
        }
