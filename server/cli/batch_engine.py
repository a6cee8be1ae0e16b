"""The engine of `prefmix fit` and `prefmix eval`: vLLM in this process, or a running server."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefmix.server.auth.api_keys import client_key

if TYPE_CHECKING:
    from prefmix.mixing.spec import MixtureSpec
    from prefmix.server.config.serve_config import ServeConfig
    from prefmix.weights.engines.local import LocalEngine
    from prefmix.weights.engines.remote import RemoteEngine


def remote_engine(url: str) -> tuple[RemoteEngine, dict[str, str]]:
    """Connects to a running server.

    Returns: the engine, and a name for each member's parameters in place of a content hash.
    Raises: RemoteError.
    """
    from prefmix.weights.engines.remote import RemoteEngine

    remote = RemoteEngine(url, api_key=client_key())
    return remote, {member.name: f"{url} {member.model}" for member in remote.spec.members}


def local_engine(config: ServeConfig, spec: MixtureSpec, passthrough: Sequence[str]) -> LocalEngine:
    """Starts vLLM in this process, and shows how long that takes. Args: as start_engine."""
    from prefmix.server.launch.in_process import start_engine
    from prefmix.server.launch.terminal import stages

    with stages.shown(f"starting the engine with {', '.join(spec.member_names)}"):
        return start_engine(config, spec, passthrough)


def checked_content_hashes(
    config: ServeConfig, spec: MixtureSpec, *, quiet: bool = False
) -> dict[str, str]:
    """Checks that the members can be loaded safely and mixed; returns their content hashes.

    Args:
      quiet: leaves out the warnings, which otherwise go to stderr.
    Raises: CompatibilityError, CheckpointFilesError.
    """
    from prefmix.server.launch.in_process import check_models, import_vllm
    from prefmix.weights.engines.content_hash import content_hashes

    if spec.base is not None:  # adapters are read by vLLM
        import_vllm(spec)
    checked = check_models(config, spec)
    if not quiet:
        for warning in (*checked.warnings, checked.vocabulary_note):
            if warning is not None:
                print(f"warning: {warning}", file=sys.stderr)
    return content_hashes(spec)
