"""Traces a shared trunk's pass of a GPU, on tensors without memory, and counts its launches.

    PYTHONPATH=tests .venv/bin/python tests/support/no_device/gpu_pass.py FOLDER [K] [reference]

FOLDER gets tiny checkpoints. Prints one JSON object: the pieces into which vLLM cuts the compiled
graph, its operations by name, and the kernels of a step outside the graph.

Shapes: K adapters, L layers.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from support.no_device import fake_gpu

LAYERS = 2
PRODUCTS = {"linear", "matmul", "addmm", "mm", "bmm"}
VIEWS = {
    "view", "_unsafe_view", "split", "split_with_sizes", "slice", "select", "unsqueeze", "squeeze",
    "expand", "t", "transpose", "permute", "detach", "alias", "as_strided", "unbind", "narrow",
    "empty", "new_empty", "empty_like", "empty_strided", "_reshape_alias",
}  # fmt: skip
"""Operations of torch that launch nothing."""


def main() -> None:
    folder = Path(sys.argv[1])
    num_adapters = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    has_reference = "reference" in sys.argv
    fake_gpu.install(num_gpus=2)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", VLLM_LOGGING_LEVEL="ERROR")
    config, spec = configuration(folder, num_adapters, has_reference=has_reference)
    report = {"v2": config.use_v2_model_runner, "mode": config.compilation_config.mode.name}
    report["graphs"] = config.compilation_config.cudagraph_mode.name
    model = build(config)
    report.update(trace(model, config))
    report["around"] = count(lambda: around_the_pass(model))
    report["logits"] = count(lambda: logits(model, spec.num_members))
    report["fused_all_reduce"] = fused_all_reduce(folder, num_adapters)
    print(json.dumps(report))


def configuration(
    folder: Path, num_adapters: int, *, has_reference: bool = False, **options: Any
) -> tuple[Any, Any]:
    """vLLM's configuration of the engine, and its mixture."""
    from vllm.engine.arg_utils import EngineArgs

    from prefmix.mixing.engine import plugin
    from prefmix.mixing.spec import MixtureSpec, Policy, hf_overrides
    from support.checkpoints.tiny_adapters import save_adapter
    from support.checkpoints.tiny_policies import save_policy

    plugin.register()
    base = folder / "base"
    if not base.exists():
        save_policy(base, seed=0, hidden=256, layers=LAYERS)
    policies = []
    for index in range(num_adapters):
        own = folder / f"a{index}"
        if not own.exists():
            save_adapter(own, base, seed=index)
        policies.append(Policy(name=own.name, model=str(own)))
    reference = Policy(name="base", model=str(base)) if has_reference else None
    spec = MixtureSpec(policies=tuple(policies), base=str(base), reference=reference)
    args = EngineArgs(
        model=str(base),
        hf_overrides=hf_overrides(spec),
        dtype="bfloat16",
        max_model_len=256,
        attention_backend="FLASH_ATTN",
        **options,
    )
    return args.create_engine_config(), spec


def fused_all_reduce(folder: Path, num_adapters: int) -> dict[str, bool]:
    """True where two ranks fuse their all-reduce: of the base alone, and of a trunk."""
    from vllm.engine.arg_utils import EngineArgs

    with mock.patch("vllm.utils.flashinfer.has_flashinfer", return_value=True):
        trunk, _ = configuration(folder, num_adapters, tensor_parallel_size=2)
        base = EngineArgs(model=str(folder / "base"), max_model_len=256, tensor_parallel_size=2)
        alone = base.create_engine_config()
    return {
        name: config.compilation_config.pass_config.fuse_allreduce_rms
        for name, config in (("alone", alone), ("trunk", trunk))
    }


def build(config: Any) -> Any:
    """The trunk without memory, its adapters in their places."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment

    from prefmix.mixing.models import shared_trunk

    config.device_config.device = torch.device("meta")
    torch.set_default_dtype(torch.bfloat16)
    with set_current_vllm_config(config):
        store = f"file://{os.path.abspath(sys.argv[1])}/ranks"
        init_distributed_environment(1, 0, store, 0, backend="gloo")
        ensure_model_parallel_initialized(1, 1)
        # What a checkpoint must fill is marked in memory that is not there.
        with mock.patch.object(shared_trunk, "built", lambda make: make()), torch.device("meta"):
            model = shared_trunk.SharedTrunkMixtureForCausalLM(vllm_config=config)
            for name, module in model.trunk.base.named_modules():
                if name in model.adapted:
                    module.quant_method.process_weights_after_loading(module)
    return model


def trace(model: Any, config: Any) -> dict[str, Any]:
    """The compiled graph: its pieces, and its operations by name."""
    import torch
    from vllm.compilation.backends import split_graph
    from vllm.config import set_current_vllm_config
    from vllm.forward_context import set_forward_context

    captured = []

    def keep(graph: Any, inputs: Any) -> Any:
        captured.append(graph)
        return lambda *inputs: [torch.empty(0, device="meta")]  # nothing can run

    ids = torch.zeros(8, dtype=torch.int32, device="meta")
    positions = torch.zeros(8, dtype=torch.int64, device="meta")
    for each in (ids, positions):
        torch._dynamo.mark_dynamic(each, 0)
    with set_current_vllm_config(config), set_forward_context(None, config, num_tokens=8):
        torch.compile(model.trunk.forward, backend=keep, fullgraph=True)(ids, positions)
    (graph,) = captured
    operations = Counter(
        getattr(each.target, "__name__", str(each.target)).removesuffix(".default")
        for each in graph.graph.nodes
        if each.op == "call_function"
    )
    pieces: Counter[str] = Counter()
    for piece in split_graph(graph, config.compilation_config.splitting_ops)[1]:
        names = {getattr(each.target, "__name__", "") for each in piece.graph.graph.nodes}
        is_computed = bool(names & PRODUCTS)
        pieces["attention" if piece.is_splitting_graph else str(is_computed)] += 1
    return {
        "layers": LAYERS,
        "pieces": sum(pieces.values()),
        "pieces_of_attention": pieces["attention"],
        "empty_pieces": pieces["False"],
        "products": sum(operations[name] for name in PRODUCTS),
        "concatenations": operations["cat"],
    }


def count(run: Callable[[], dict[str, int]]) -> dict[str, int]:
    """The operations that launch kernels, by name, and those that the function counts itself."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counting(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.found: Counter[str] = Counter()

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            name = func._schema.name.rpartition("::")[2]
            if name not in VIEWS:
                self.found[name] += 1
            return func(*args, **(kwargs or {}))

    with Counting() as counting:
        own = run()
    return dict(sorted((counting.found + Counter(own)).items()))


def around_the_pass(model: Any) -> dict[str, int]:
    """The parts of a step before and after the compiled pass."""
    import torch
    from vllm.forward_context import ForwardContext, override_forward_context

    num_tokens, members = 8, model.step.num_members
    ids = torch.zeros(num_tokens, dtype=torch.int32, device="meta")
    num_coefficients = members + len(model.spec.adapters)
    coefficients = torch.zeros(num_tokens, num_coefficients, device="meta", dtype=torch.float32)
    hidden = torch.empty(members * num_tokens, model.hidden_sizes[0], device="meta")
    model.weights = mock.Mock()
    model.weights.token_coefficients.return_value = coefficients
    model.weights.heads.return_value = model.weights.rows.return_value = None
    context = ForwardContext(no_compile_layers={}, attn_metadata={}, slot_mapping={})
    trunk = model.trunk
    with override_forward_context(context):
        model._modules["trunk"] = lambda *args: hidden
        try:
            model(ids, ids)
        finally:
            model._modules["trunk"] = trunk
    return {}


def logits(model: Any, num_members: int) -> dict[str, int]:
    """From hidden states to checked logits, outside any graph."""
    import torch

    model.__dict__["is_head_linear"] = True
    model.step.checks_rows = True
    model.step.begin([True] * num_members, [])
    columns = 2 * num_members
    width = sum(model.hidden_sizes) + columns
    rows = torch.empty(8, width + -width % 16, dtype=torch.bfloat16, device="meta")
    # Kernels that are no operators of torch.
    kernel = mock.Mock()
    module = SimpleNamespace(broken_rows_triton=kernel)
    with mock.patch.dict(sys.modules, {"prefmix.mixing.kernels.broken_rows_triton": module}):
        model.compute_logits(rows)
    return {"broken_rows": kernel.call_count}


if __name__ == "__main__":
    main()
