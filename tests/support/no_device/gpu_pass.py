"""Traces a shared trunk's pass of a GPU, on tensors without memory, and counts its launches.

    PYTHONPATH=tests .venv/bin/python tests/support/no_device/gpu_pass.py FOLDER [K] [WORDS]

FOLDER gets tiny checkpoints. Words: `reference` adds one, and `8b` makes two layers of the shape of
Llama 3 8B instead. Prints one JSON object: the pieces into which vLLM cuts the compiled graph, its
operations by name, the kernels of a step outside the graph, and the bytes that they move.

Shapes: K adapters, L layers.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any
from unittest import mock

from support.no_device import fake_gpu
from support.no_device.counting import bytes_of, count

LAYERS = 2
PRODUCTS = {"linear", "matmul", "addmm", "mm", "bmm", "scaled_update"}


def main() -> None:
    folder = Path(sys.argv[1])
    num_adapters = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    has_reference = "reference" in sys.argv
    fake_gpu.install()
    if "8b" in sys.argv:
        save_large(folder, num_adapters)
    config, spec = configuration(folder, num_adapters, has_reference=has_reference)
    report = {"v2": config.use_v2_model_runner, "mode": config.compilation_config.mode.name}
    report["graphs"] = config.compilation_config.cudagraph_mode.name
    model = build(config)
    report.update(trace_of(model.trunk.forward, config))
    report["attention"] = attention(model, config)
    report["graphs_of_steps"] = graphs_of_steps(config)
    report["around"] = count(lambda: around_the_pass(model) and {})
    report["inputs"] = around_the_pass(model, positions=(3,))
    report["logits"] = count(lambda: logits(model, spec.num_members))
    report["rows"] = rows_of_a_pass(folder, num_adapters)
    report["bytes"] = {
        rows: {
            "around": bytes_of(lambda rows=rows: around_the_pass(model, rows) and {}),
            "logits": bytes_of_logits(model, spec.num_members, rows),
        }
        for rows in (1, 64)
    }
    one_of_all = [member == 1 for member in range(spec.num_members)]
    report["logits_of_one"] = count(lambda: logits(model, spec.num_members, active=one_of_all))
    report["fused_all_reduce"] = fused_all_reduce(folder, num_adapters)
    report["slots"] = slots(folder, num_adapters)
    print(json.dumps(report))


def save_large(folder: Path, num_adapters: int) -> None:
    """Two layers of the shape of Llama 3 8B, without parameters, and adapters of rank 16."""
    from prefmix.bench.contestants.random_models import (
        Shape,
        build_tokenizer,
        save_adapter,
        save_shape,
    )

    sizes = {"hidden": 4096, "intermediate": 14_336, "heads": 32, "kv_heads": 8, "vocab": 128_256}
    config = Shape(layers=LAYERS, **sizes).config()
    base = save_shape(folder / "base", config, tokenizer=build_tokenizer(vocab_size=128_256))
    for index in range(num_adapters):
        save_adapter(folder / f"a{index}", base, rank=16, seed=index)


def configuration(
    folder: Path,
    num_adapters: int,
    *,
    has_reference: bool = False,
    slots: Mapping[str, Any] = MappingProxyType({}),
    **options: Any,
) -> tuple[Any, Any]:
    """vLLM's configuration of the engine, and its mixture. Args: slots: fields of the spec."""
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
    spec = MixtureSpec(policies=tuple(policies), base=str(base), reference=reference, **slots)
    args = EngineArgs(
        model=str(base),
        hf_overrides=hf_overrides(spec),
        dtype="bfloat16",
        max_model_len=256,
        attention_backend="FLASH_ATTN",
        **options,
    )
    return args.create_engine_config(), spec


def slots(folder: Path, num_adapters: int) -> dict[str, Any]:
    """A trunk with a slot and two slots without KV cache: its pass, before and after adapters came
    into all of them."""
    import torch
    from vllm.model_executor.layers.attention import Attention

    fields = {"adapter_slots": 3, "slots_without_kv": 2, "max_adapter_rank": 8}
    config, spec = configuration(folder, num_adapters, slots=fields)
    model = build(config)
    matrices = dict(model.trunk.base.named_parameters())
    for place in range(num_adapters, num_adapters + 3):
        for method in model.adapted.values():
            num_ranks, inputs, outputs = method.num_slot_ranks, *method._sizes
            method.put(place, (torch.zeros(num_ranks, inputs), torch.zeros(num_ranks, outputs)))
            method.put(place, None)
    after = dict(model.trunk.base.named_parameters())
    caches = config.compilation_config.static_forward_context.values()
    return {
        **trace_of(model.trunk.forward, config),
        "around": count(lambda: around_the_pass(model) and {}),
        "members": model.step.num_members,
        "caches": sum(isinstance(each, Attention) for each in caches),
        "in_place": all(after[name] is each for name, each in matrices.items()),
        "apart": [name for name in after if "adapters_a" in name or "slots" in name],
        "layers_with_room": len(model.adapted),
        "bytes": [model.parameter_bytes()[each] for each in spec.slot_members],
    }


def rows_of_a_pass(folder: Path, num_adapters: int) -> dict[str, Any]:
    """The largest step of one policy, the longest inputs that are compiled, and the largest step
    that vLLM warms up."""
    config, _ = configuration(folder, num_adapters)
    trunk = build(config).trunk
    own, engines = trunk.compilation_config, config.compilation_config
    return {
        "step": config.scheduler_config.max_num_batched_tokens,
        "compiled": own.get_compile_ranges()[-1].end,
        "warmed_up": engines.get_compile_ranges()[-1].end,
        "shared": own.static_forward_context is engines.static_forward_context,
        "cut_alike": own.splitting_ops == engines.splitting_ops,
    }


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


@contextmanager
def without_memory(config: Any) -> Iterator[None]:
    """One rank and bfloat16, for building a model on the meta device."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment

    config.device_config.device = torch.device("meta")
    torch.set_default_dtype(torch.bfloat16)
    with set_current_vllm_config(config):
        store = f"file://{os.path.abspath(sys.argv[1])}/ranks"
        init_distributed_environment(1, 0, store, 0, backend="gloo")
        ensure_model_parallel_initialized(1, 1)
        yield


def build(config: Any) -> Any:
    """The trunk without memory, its adapters in their places."""
    import torch

    from prefmix.mixing.models import shared_trunk

    # What a checkpoint must fill is marked in memory that is not there.
    no_marks = mock.patch.object(shared_trunk, "built", lambda make: make())
    with without_memory(config), no_marks, torch.device("meta"):
        model = shared_trunk.SharedTrunkMixtureForCausalLM(vllm_config=config)
        for name, module in model.trunk.base.named_modules():
            if name in model.adapted:
                module.quant_method.process_weights_after_loading(module)
    return model


def graph_of(forward: Callable[..., Any], config: Any) -> Any:
    """The graph of a function of ids and positions, as torch hands it to vLLM's compiler."""
    import torch
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
        torch.compile(forward, backend=keep, fullgraph=True)(ids, positions)
    (graph,) = captured
    return graph


def pieces_of(graph: Any, config: Any) -> list[Any]:
    """The pieces into which vLLM cuts a graph: those of attention, and those that it compiles."""
    from vllm.compilation.backends import split_graph

    return list(split_graph(graph, config.compilation_config.splitting_ops)[1])


def trace_of(forward: Callable[..., Any], config: Any) -> dict[str, Any]:
    """The compiled graph of a function of ids and positions: its pieces, and its products."""
    graph = graph_of(forward, config)
    operations = Counter(
        getattr(each.target, "__name__", str(each.target)).removesuffix(".default")
        for each in graph.graph.nodes
        if each.op == "call_function"
    )
    pieces: Counter[str] = Counter()
    for piece in pieces_of(graph, config):
        names = {getattr(each.target, "__name__", "") for each in piece.graph.graph.nodes}
        is_computed = bool(names & PRODUCTS)
        pieces["attention" if piece.is_splitting_graph else str(is_computed)] += 1
    return {
        "layers": LAYERS,
        "pieces": sum(pieces.values()),
        "pieces_of_attention": pieces["attention"],
        "empty_pieces": pieces["False"],
        "products": sum(operations[name] for name in PRODUCTS),
        "updates": operations["scaled_update"],
        "concatenations": operations["cat"],
    }


def attention(model: Any, config: Any) -> dict[str, Any]:
    """A step's calls of attention where the members' caches are one, what lays their requests out,
    and the room that FlashAttention's builder of metadata makes for them."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.v1.attention.backends import flash_attn
    from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers

    from prefmix.mixing.batch import joined_requests_v2 as joined
    from prefmix.mixing.batch.needed_rows_v2 import NeededRows
    from prefmix.mixing.models.joined_attention import join_for_runner_v2

    num_requests, width, device = 8, 16, torch.device("meta")
    stacked, members = model.attention.stacked, model.step.num_members
    names = [layer.layer_name for each in stacked for layer in each.layers]
    first = stacked[0].layers[0]
    spec = first.get_kv_cache_spec(config)
    group = SimpleNamespace(layer_names=names, kv_cache_spec=spec)
    kinds = first.num_kv_heads, spec.block_size, 2 * first.head_size
    caches = torch.empty((len(names), 40, *kinds), device="meta").unbind()
    for each in stacked:
        for member, layer in enumerate(each.layers):
            layer.kv_cache = caches[member * len(stacked) + stacked.index(each)]
    # Tensors without memory have no addresses.
    with (
        mock.patch.multiple(
            "prefmix.mixing.models.joined_attention",
            join_caches=lambda caches: (None, [40 * len(stacked) * m for m in range(members)]),
        ),
        mock.patch.object(type(stacked[0]), "join", return_value=None),
    ):
        layers = join_for_runner_v2(stacked, SimpleNamespace(kv_cache_groups=[group]), config)
    sizes = {
        "block_sizes": [spec.block_size],
        "widths": [width],
        "num_requests": config.scheduler_config.max_num_seqs,
        "num_tokens": config.scheduler_config.max_num_batched_tokens,
        "device": device,
    }
    requests = joined.JoinedRequests(layers, **sizes)
    needed = NeededRows(layers, set_scales=model.stack.set_scales, has_experts=False, **sizes)
    buffers = InputBuffers(num_requests, num_requests, torch.device("cpu"))
    batch = InputBatch.make_dummy(num_requests, num_requests, buffers)
    step = joined.MembersStep(
        [batch] * members,
        torch.zeros(members, num_requests + 1, dtype=torch.int32, device="meta"),
        torch.zeros(members, num_requests, dtype=torch.int32, device="meta"),
        [torch.zeros(members, num_requests, width, dtype=torch.int32, device="meta")],
        torch.zeros(members, 1, num_requests, dtype=torch.int64, device="meta"),
    )

    def laid_out() -> dict[str, int]:
        requests.fill(step, num_tokens=num_requests, one_row_each=True)
        return {}

    with (
        set_current_vllm_config(config),
        mock.patch.object(flash_attn, "get_flash_attn_version", return_value=3),
    ):
        own = joined.config_of_list(config, members)
        builder = flash_attn.FlashAttentionMetadataBuilder(spec, layers[0].names, own, device)
    return {
        "calls": calls_of_attention(stacked[0], joined_blocks=(0, 40 * len(names))),
        "calls_apart": calls_of_attention(stacked[0], joined_blocks=None),
        "lists": len(layers),
        "laid_out": count(laid_out),
        "needed": steps_of_needed_rows(model, needed, batch, width),
        "most_requests": members * (config.scheduler_config.max_num_seqs + 1),
        "room": builder.scheduler_metadata.shape[0],
        "largest_graph": builder.max_cudagraph_size,
        "largest_graph_of_one": config.compilation_config.max_cudagraph_capture_size,
    }


def steps_of_needed_rows(
    model: Any, needed: Any, batch: Any, width: int
) -> dict[str, dict[str, int]]:
    """A decode step of requests that weigh one policy each: what lays its rows out, what a graph
    holds beside the compiled pass, and what brings hidden states to their places."""
    import numpy as np
    import torch
    from vllm.config import CUDAGraphMode
    from vllm.forward_context import ForwardContext, override_forward_context

    from prefmix.mixing.batch.pairs import views_of_engine

    members, num_requests = model.step.num_members, batch.num_reqs
    num_coefficients = members + len(model.spec.adapter_members)
    table_SC, ids, places, tables, slots = (
        torch.zeros(shape, dtype=dtype, device="meta")
        for shape, dtype in (
            ((num_requests, num_coefficients), torch.float32),
            ((num_requests,), torch.int32),
            ((num_requests,), torch.int64),
            ((num_requests, width), torch.int32),
            ((1, num_requests), torch.int64),
        )
    )
    there = dataclasses.replace(batch, input_ids=ids, positions=places, seq_lens=ids)
    weighs_BM = np.arange(members) == np.arange(num_requests)[:, None] % members
    needed.graph_sizes = {CUDAGraphMode.FULL: [3, num_requests]}
    model.weights = mock.Mock()
    model.weights.needed_rows.return_value = needed
    model.weights.token_coefficients.return_value = table_SC
    hidden = torch.empty(members * num_requests, model.hidden_sizes[0], device="meta")

    def begin(*, mode: Any, is_captured: bool = False) -> dict[str, int]:
        scales = (table_SC[:, members:], np.arange(num_requests))
        views = views_of_engine(there, [tables], slots, members)
        needed.begin(there, weighs_BM, scales, views, mode=mode, is_captured=is_captured)
        return {}

    def graph() -> dict[str, int]:
        context = ForwardContext(no_compile_layers={}, attn_metadata={}, slot_mapping={})
        trunk = model.trunk
        with override_forward_context(context):
            model._modules["trunk"] = lambda *args: hidden[: needed.num_rows]
            try:
                assert len(model(ids, places)) == needed.tokens_of_graph
            finally:
                model._modules["trunk"] = trunk
        return {}

    def spread() -> dict[str, int]:
        model.spread_rows(hidden[: needed.num_rows], needed, num_requests)
        return {}

    with mock.patch("vllm.utils.torch_utils.is_pin_memory_available", return_value=False):
        unpadded = count(lambda: begin(mode=CUDAGraphMode.NONE))
        stays = count(lambda: begin(mode=CUDAGraphMode.NONE))
        weighs_BM[:2] = True
        padded = count(lambda: begin(mode=CUDAGraphMode.FULL, is_captured=True))
        return {
            "laid_out": unpadded,
            "stays": stays,
            "padded": padded,
            "graph": count(graph),
            "spread": count(spread),
        }


def graphs_of_steps(config: Any) -> list[str]:
    """The kind of CUDA graph that vLLM's manager finds for eight requests of a token each: told
    that they have one, and not told."""
    import torch
    from vllm.v1.worker.gpu import cudagraph_utils

    mode = config.compilation_config.cudagraph_mode
    with mock.patch.object(cudagraph_utils, "current_platform"):
        manager = cudagraph_utils.CudaGraphManager(config, torch.device("meta"), mode, 1)
    manager._graphs_captured = True
    return [
        manager.dispatch(8, 8, tokens_each, num_active_loras=0, max_query_len=1).cg_mode.name
        for tokens_each in (1, None)
    ]


def calls_of_attention(stacked: Any, *, joined_blocks: tuple[int, int] | None) -> list[int]:
    """Calls that write a layer's caches, and that attend."""
    import torch
    from vllm.forward_context import ForwardContext, override_forward_context

    layers = {layer.layer_name: layer for layer in stacked.layers}
    steps = dict.fromkeys(layers, mock.Mock())
    slots = dict.fromkeys(layers, torch.zeros(8, dtype=torch.int64, device="meta"))
    first, rows = stacked.layers[0], 8 * len(layers)
    query, out = torch.empty(2, rows, first.num_heads, first.head_size, device="meta")
    keys = torch.empty(2, rows, first.num_kv_heads, first.head_size, device="meta")
    impl = mock.Mock()
    context = ForwardContext(no_compile_layers=layers, attn_metadata=steps, slot_mapping=slots)
    with ExitStack() as patched:
        for layer in stacked.layers:
            patched.enter_context(mock.patch.object(layer, "impl", impl))
        patched.enter_context(mock.patch.object(stacked, "joined_blocks", joined_blocks))
        patched.enter_context(override_forward_context(context))
        stacked.attend(query, *keys, out)
    return [impl.do_kv_cache_update.call_count, impl.forward.call_count]


def around_the_pass(
    model: Any, num_tokens: int = 8, *, positions: Sequence[int] = ()
) -> dict[str, list[int]]:
    """The parts of a step before and after the compiled pass.

    Args:
      positions: of a token, how many it has, where they are several.
    Returns: the shapes of the compiled pass's inputs.
    """
    import torch
    from vllm.forward_context import ForwardContext, override_forward_context

    members = model.step.num_members
    ids = torch.zeros(num_tokens, dtype=torch.int32, device="meta")
    num_coefficients = members + len(model.spec.adapter_members)
    coefficients = torch.zeros(num_tokens, num_coefficients, device="meta", dtype=torch.float32)
    hidden = torch.empty(members * num_tokens, model.hidden_sizes[0], device="meta")
    model.weights = mock.Mock()
    model.weights.token_coefficients.return_value = coefficients
    model.weights.own_slots.return_value = nullcontext()
    model.weights.heads.return_value = model.weights.rows.return_value = None
    model.weights.needed_rows.return_value = None
    context = ForwardContext(no_compile_layers={}, attn_metadata={}, slot_mapping={})
    trunk = model.trunk
    places = torch.zeros((*positions, num_tokens), dtype=torch.int64, device="meta")
    shapes: dict[str, list[int]] = {}

    def run(ids: Any, places: Any) -> Any:
        shapes.update(ids=list(ids.shape), positions=list(places.shape))
        return hidden

    with override_forward_context(context):
        model._modules["trunk"] = run
        try:
            model(ids, places)
        finally:
            model._modules["trunk"] = trunk
    return shapes


def logits(
    model: Any,
    num_members: int,
    num_rows: int = 8,
    *,
    kernel: mock.Mock | None = None,
    requests: Sequence[Any] = (),
    active: Sequence[bool] | None = None,
) -> dict[str, int]:
    """From hidden states to checked logits, outside any graph.

    Args:
      kernel: called in place of the check of the rows, which is no operator of torch.
      requests: of the rows, as statistics know them.
      active: the members that run, of a trunk whose head is more than a product.
    """
    import torch

    from prefmix.mixing.kernels import broken_rows_triton, logits_pass_triton
    from prefmix.mixing.kernels.logits_pass_triton import LogitsPass

    model.__dict__["is_head_linear"] = active is None
    model.step.checks_rows = True
    if active is not None:
        model.step.runs_everyone = False  # as where steps run what their requests weigh
    model.step.begin(list(active or [True] * num_members), requests)
    columns = 2 * num_members
    width = sum(model.hidden_sizes) + columns
    rows = torch.empty(num_rows, width + -width % 16, dtype=torch.bfloat16, device="meta")
    kernel = kernel or mock.Mock()
    mixed_NV = torch.empty(num_rows, model.vocab_size, device="meta")
    found = LogitsPass(mixed_NV, torch.empty(num_rows, 1, device="meta"), mixed_NV)
    one_pass = mock.Mock(return_value=found)
    with (
        mock.patch.object(broken_rows_triton, "broken_rows_triton", kernel),
        mock.patch.object(logits_pass_triton, "pass_over_logits", one_pass),
    ):
        model.compute_logits(rows)
    launches = {"broken_rows": kernel.call_count}
    if one_pass.called:
        assert one_pass.call_args.kwargs["measures"] == bool(requests)
        assert kernel.call_args.args[3] is found.tops_NQ, "the check would read the logits again"
        launches["logits_pass"] = one_pass.call_count
    if active is not None:
        launches["policies"] = one_pass.call_args.args[0].present.bit_count()
    return launches


def bytes_of_logits(model: Any, num_members: int, num_rows: int) -> int:
    """Bytes that the same moves, those that the check reads among them."""
    from torch import is_tensor
    from torch.utils._pytree import tree_leaves

    kernel = mock.Mock()
    moved = bytes_of(lambda: logits(model, num_members, num_rows, kernel=kernel))
    read = [each for each in tree_leaves(kernel.call_args.args) if is_tensor(each)]
    return moved + sum(each.numel() * each.element_size() for each in read)


if __name__ == "__main__":
    main()
