"""Chooses among a kernel's few launch configurations by measuring each once.

Triton's own autotuner benchmarks inside the call, which a CUDA graph cannot capture. This tuner
measures only outside of a capture. During a capture it uses what was measured before, or else the
first configuration. So call the kernel once with inputs of the same kind before capturing it;
vLLM's profiling run does so.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import torch

Config = Mapping[str, int]
"""Compile-time constants and launch options (`num_warps`, `num_stages`) of one configuration."""

_WARM_UPS = 3
_LAUNCHES = 20
MANY_ROWS = 32
"""The fewest rows that count as many."""


def many(num_rows: int) -> bool:
    """True for a batch of rows, for which another configuration may be fastest than for few rows.

    The distinction is coarse because each kind of input is measured anew, and batches change from
    step to step.
    """
    return num_rows >= MANY_ROWS


class Tuner:
    """Remembers the fastest configuration for each kind of input, per process."""

    def __init__(self, *configs: Config) -> None:
        """
        Args:
          configs: the candidates. The first is used where nothing can be measured; it must run
            on any device.
        """
        self.configs: Sequence[Config] = configs
        self.fastest: dict[Hashable, Config] = {}

    def launch(
        self, run: Callable[[Config], object], *, key: Hashable, device: torch.device
    ) -> None:
        """Runs with the fastest configuration for `key`, which the first such call measures.

        Args:
          run: launches the kernel. It is called many times, so it must not accumulate.
          key: the properties of the input that the best configuration depends on: dtypes, members,
            sizes rounded coarsely.
        """
        if device.type != "cuda":  # under the interpreter there is nothing to measure
            run(self.configs[0])
            return
        with torch.cuda.device(device):  # Triton launches on the current one
            config = self.fastest.get(key)
            if config is None:
                config = self.configs[0]
                if not torch.cuda.is_current_stream_capturing():
                    config = min(self.configs, key=lambda each: _milliseconds(run, each))
                    self.fastest[key] = config
            run(config)


def _milliseconds(run: Callable[[Config], object], config: Config) -> float:
    """Time of several launches; infinite for a configuration that the device has no room for."""
    from triton.runtime.errors import OutOfResources

    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    try:
        for _ in range(_WARM_UPS):
            run(config)
    except OutOfResources:
        return float("inf")
    start.record()
    for _ in range(_LAUNCHES):
        run(config)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))
