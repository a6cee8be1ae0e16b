"""A loader of vLLM's that makes random numbers in place of a checkpoint's files.

vLLM's own `--load-format dummy` fills parameters in place and names no tensor of a checkpoint, by
whose names a shared trunk learns where its adapters belong. Here every tensor that the files of the
model would have is made under its name, one at a time, and takes the way of a file's. What such a
model says is noise; its speed is that of any model of its shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from vllm.model_executor.model_loader import DefaultModelLoader, register_model_loader

from prefmix.bench.contestants.dummy_format import DUMMY
from prefmix.bench.contestants.random_models import dummy_tensors


class DummyLoader(DefaultModelLoader):
    """Yields the tensors of folders that have a config and no parameters."""

    def download_model(self, model_config: Any) -> None:
        """There is nothing to download."""

    def _get_weights_iterator(self, source: Any) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in dummy_tensors(Path(source.model_or_path)):
            yield source.prefix + name, tensor


def register() -> None:
    """Makes the loader known to vLLM in this process."""
    register_model_loader(DUMMY)(DummyLoader)
