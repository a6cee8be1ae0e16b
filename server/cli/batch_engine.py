"""The engine of a job that ends, `fit` or `eval`: vLLM in this process, or a running server."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefmix.server.auth.api_keys import client_key

if TYPE_CHECKING:
    from prefmix.mixing.spec import MixtureSpec
    from prefmix.server.config.serve_config import ServeConfig
    from prefmix.weights.engines.local import Engine
    from prefmix.weights.engines.remote import RemoteEngine


def remote_engine(url: str) -> tuple[RemoteEngine, dict[str, str]]:
    """(the engine behind a running server, what stands for its members' content hashes).

    Raises: RemoteError.
    """
    from prefmix.weights.engines.remote import RemoteEngine

    remote = RemoteEngine(url, api_key=client_key())
    return remote, {member.name: f"{url} {member.model}" for member in remote.spec.members}


def checked_fingerprints(config: ServeConfig, spec: MixtureSpec) -> dict[str, str]:
    """The members' content hashes, after checking that they can be loaded safely and mixed.

    Raises: CompatibilityError, CheckpointFilesError.
    """
    from prefmix.mixing.checkpoints.compatibility import check_members
    from prefmix.mixing.checkpoints.safe_files import check_safe_files
    from prefmix.weights.engines.content_hash import fingerprints
    from prefmix.weights.engines.local import set_environment
    from prefmix.weights.engines.quiet import held_back_stderr

    set_environment()
    if spec.base is not None:  # adapters are read by vLLM, whose import is not silent
        with held_back_stderr():
            importlib.import_module("vllm.lora.peft_helper")
    if not config.allow_unsafe_weights:
        check_safe_files(spec)
    check_members(spec)
    return fingerprints(spec)


def local_engine(config: ServeConfig, spec: MixtureSpec, passthrough: Sequence[str]) -> Engine:
    """Starts vLLM in this process on a mixture, with the configuration's engine flags."""
    from prefmix.weights.engines.local import LocalEngine, set_environment
    from prefmix.weights.engines.quiet import held_back_stderr

    set_environment()
    with held_back_stderr():
        from vllm import LLM
        from vllm.engine.arg_utils import EngineArgs

        from prefmix.server.launch.engine_args import build_arguments

        arguments = build_arguments(config, spec, passthrough)
        return LocalEngine(LLM.from_engine_args(EngineArgs.from_cli_args(arguments)))
