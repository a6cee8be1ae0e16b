"""vLLM on a mixture in this process, without HTTP, for `prefmix fit`, `eval` and the Python API.

`prefmix serve` starts vLLM's own server instead (prefmix.server.launch.launch). Both read vLLM's
arguments in the same way and check the same files.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefmix.mixing.checkpoints.compatibility import CheckedMembers
    from prefmix.mixing.spec import MixtureSpec
    from prefmix.server.config.serve_config import ServeConfig
    from prefmix.weights.engines.local import LocalEngine


def import_vllm(spec: MixtureSpec | None = None) -> None:
    """Imports vLLM quietly, with the environment of a batch job.

    Args: spec: a mixture; if it has adapters, the modules that read them are imported, too.
    Raises: InstallationError if vLLM is missing or cannot be imported.
    """
    from prefmix.server.launch.environment import set_plugins
    from prefmix.server.launch.installation import explained, require_vllm
    from prefmix.weights.engines.local import set_environment
    from prefmix.weights.engines.quiet import held_back_stderr

    require_vllm()
    if "vllm" in sys.modules and "VLLM_LOGGING_LEVEL" not in os.environ:
        logging.getLogger("vllm").setLevel(logging.ERROR)  # it reads the variable only once
    set_environment()
    if "VLLM_PLUGINS" in os.environ:  # vLLM loads all plugins if it is not set
        set_plugins()
    with explained(), held_back_stderr():
        importlib.import_module("vllm")
        importlib.import_module("prefmix.server.launch.engine_args")
        if spec is not None and spec.base is not None:
            importlib.import_module("vllm.lora.peft_helper")


def check_files(config: ServeConfig, spec: MixtureSpec) -> None:
    """Checks the members' files, and that the hub can be asked for those that are not here.

    Needs neither torch nor vLLM. Raises: CheckpointFilesError.
    """
    from prefmix.mixing.checkpoints.hub import check_hub
    from prefmix.mixing.checkpoints.safe_files import check_safe_files
    from prefmix.mixing.checkpoints.whole_files import check_whole_files

    check_hub(spec)
    if not config.allow_unsafe_weights:
        check_safe_files(spec)
    check_whole_files(spec)


def check_models(
    config: ServeConfig, spec: MixtureSpec, *, trust_remote_code: bool = False
) -> CheckedMembers:
    """Checks that the members can be loaded safely and mixed.

    Raises: CompatibilityError, CheckpointFilesError.
    """
    from prefmix.mixing.checkpoints.compatibility import check_members

    check_files(config, spec)
    return check_members(spec, trust_remote_code=trust_remote_code)


def start_engine(
    config: ServeConfig, spec: MixtureSpec, passthrough: Sequence[str] = ()
) -> LocalEngine:
    """Starts vLLM in this process on a mixture, with the configuration's engine flags.

    Args:
      config: its `engine` flags come first, so `passthrough` overrides them.
      spec: the mixture.
      passthrough: words of vLLM's command line.
    Raises: CommandError for an unknown flag, a bad value or a flag that prefmix owns.
    """
    import_vllm()
    from prefmix.server.launch.engine_args import build_arguments

    systems = config.prompts().systems
    return start_on(
        build_arguments(config, spec, passthrough),
        systems_M=[systems.get(name) for name in spec.member_names],
    )


def start_on(
    arguments: Namespace,
    objects: Mapping[str, Any] | None = None,
    *,
    systems_M: Sequence[str | None] = (),
) -> LocalEngine:
    """Starts vLLM in this process.

    Args:
      arguments: of `build_arguments`.
      objects: engine arguments that no command line can carry; they replace those of `arguments`.
      systems_M: the system message of each member, None for one without.
    Raises: EngineError if the engine does not pass its check of itself.
    """
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs

    from prefmix.weights.engines.errors import EngineError
    from prefmix.weights.engines.local import LocalEngine
    from prefmix.weights.engines.quiet import held_back_stderr

    engine = {**vars(EngineArgs.from_cli_args(arguments)), **(objects or {})}
    with _bounded_kv_cache(arguments), held_back_stderr(EngineError):
        return LocalEngine(
            LLM(**engine, chat_template=arguments.chat_template),
            chat_options={
                "chat_template_content_format": arguments.chat_template_content_format,
                "chat_template_kwargs": arguments.default_chat_template_kwargs or {},
            },
            systems_M=systems_M,
        )


@contextmanager
def _bounded_kv_cache(arguments: Namespace) -> Iterator[None]:
    """Bounds the KV cache on a CPU, unless an argument or the user's environment gives its size."""
    from prefmix.weights.engines.local import CPU_KV_CACHE, CPU_KV_CACHE_GIB

    if arguments.kv_cache_memory_bytes is not None or CPU_KV_CACHE in os.environ:
        yield
        return
    os.environ[CPU_KV_CACHE] = CPU_KV_CACHE_GIB
    try:
        yield
    finally:
        del os.environ[CPU_KV_CACHE]  # the next engine's argument is to count
