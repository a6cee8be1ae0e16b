"""`prefmix bench memory`: bytes of parameters, and of KV cache per token, read from the engine."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefmix.bench.contestants.implementations import VllmEngine
from prefmix.bench.contestants.models import add_model_flags, prepare_models
from prefmix.bench.contestants.settings import FULL, ONE_POLICY, TRUNK, contestant_settings
from prefmix.bench.contestants.worker import Worker
from prefmix.bench.engine_flags import add_engine_flags, common_settings, model_name
from prefmix.bench.report import Report, progress

if TYPE_CHECKING:
    import torch

LAYOUTS = (ONE_POLICY, FULL, TRUNK)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `prefmix bench memory`."""
    parser.add_argument(
        "--policies", type=int, nargs="+", default=[3], metavar="K", help="default 3"
    )
    add_engine_flags(parser)
    add_model_flags(parser, size="134m")


def run(args: argparse.Namespace, passthrough: Sequence[str]) -> int:
    """Measures and prints; returns the exit code."""
    common = common_settings(args, passthrough)
    common["options"]["enforce_eager"] = True  # speed does not matter here
    report = Report(
        f"{model_name(args)}, {args.dtype}",
        table,
        line=lambda one: {"bench": "memory", **one, "dtype": args.dtype},
        num_left=2,
        num_steps=len(args.policies) * len(LAYOUTS),
    )
    with report, tempfile.TemporaryDirectory(prefix="prefmix-bench-") as folder:
        models = prepare_models(args, Path(folder), num_policies=max(args.policies))
        for num_policies in args.policies:
            everyone = contestant_settings(models, num_policies=num_policies, common=common)
            for name in LAYOUTS:
                if name not in everyone:
                    progress(f"no {name}: the models given do not allow it")
                    continue
                report.begin(f"{name}, K = {num_policies}")
                worker = Worker({**everyone[name], "kind": "prefmix.bench.memory:MemoryProbe"})
                worker.wait_started()
                figures = worker.ask({})
                worker.close()
                report.add([{"num_policies": num_policies, "layout": name, **figures}])
    return 0


def table(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The cells, heading first; the first row is one policy alone."""
    heading = ["K", "layout", "parameters MiB", "x one policy", "KV bytes a token", "x one policy"]
    one = found[0]
    rows = [
        [
            str(row["num_policies"]),
            row["layout"],
            f"{row['parameter_bytes'] / 2**20:.1f}",
            f"{row['parameter_bytes'] / one['parameter_bytes']:.2f}",
            str(row["kv_bytes_per_token"]),
            f"{row['kv_bytes_per_token'] / one['kv_bytes_per_token']:.2f}",
        ]
        for row in found
    ]
    return [heading, *rows]


class MemoryProbe(VllmEngine):
    """vLLM in this process, whose parameters are counted between loading and post-processing.

    Post-processing hides them: on CPU vLLM repacks linear layers into memory that no tensor shows.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        from vllm.model_executor.model_loader import base_loader

        after_loading = base_loader.process_weights_after_loading
        self._parameter_bytes = 0

        def counted(model: torch.nn.Module, *args: Any) -> None:
            self._parameter_bytes += unique_bytes(model.parameters())
            after_loading(model, *args)

        base_loader.process_weights_after_loading = counted
        try:
            super().__init__(settings)
        finally:
            base_loader.process_weights_after_loading = after_loading

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The figures, whatever the request."""
        [kv_bytes_per_token] = self.llm.collective_rpc(_kv_bytes_per_token)
        return {
            "parameter_bytes": self._parameter_bytes,
            "kv_bytes_per_token": kv_bytes_per_token,
        }


def _kv_bytes_per_token(worker: Any) -> int:
    specs = worker.model_runner.get_kv_cache_spec().values()
    return sum(spec.page_size_bytes // spec.block_size for spec in specs)


def unique_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the tensors' storages; a storage that several tensors share counts once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())
