"""vLLM in this process, started from a contestant's settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefmix.bench.contestants.dummy_format import DUMMY
from prefmix.mixing.spec import MixtureSpec, hf_overrides


def mixture_of(settings: Mapping[str, Any]) -> MixtureSpec | None:
    """The mixture to serve; None for a single model."""
    spec = settings.get("mixture")
    return None if spec is None else MixtureSpec.from_dict(spec)


FREE_SHARE = 0.05
"""Share of a GPU's memory that must be free at a start, by default most of it: several contestants
run beside each other. Their caches have a size of their own."""


def start_vllm(settings: Mapping[str, Any]) -> Any:
    """Starts a `vllm.LLM`.

    Args:
      settings: `model`; `options` of `vllm.LLM`; `engine_flags`, the user's flags for vLLM, which
        win over `options`; `mixture`, a spec's dictionary, or absent; `kv_cache_bytes` per policy.
    """
    from vllm import LLM, EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    if settings.get("options", {}).get("load_format") == DUMMY:
        from prefmix.bench.contestants.dummy_loader import register

        register()
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    defaults = vars(parser.parse_args([]))
    given = vars(parser.parse_args(list(settings.get("engine_flags", []))))
    spec = mixture_of(settings)
    num_members = 1 if spec is None else spec.num_members
    options = {
        "gpu_memory_utilization": FREE_SHARE,
        "kv_cache_memory_bytes": num_members * settings["kv_cache_bytes"],
        **settings.get("options", {}),
        **{name: value for name, value in given.items() if value != defaults[name]},
    }
    if spec is not None:
        options["hf_overrides"] = hf_overrides(spec)
    return LLM(model=settings["model"], **options)
