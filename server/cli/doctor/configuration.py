"""The checks of `prefmix serve` for one configuration: the same functions, and no start."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from prefmix.mixing.checkpoints.safe_files import cached_folder
from prefmix.mixing.shown_value import shown_bytes
from prefmix.mixing.spec import MixtureSpec
from prefmix.server.admin import listener
from prefmix.server.auth.admin_tokens import admin_tokens
from prefmix.server.auth.api_keys import api_keys
from prefmix.server.cli.doctor.report import Report
from prefmix.server.config.serve_config import ServeConfig
from prefmix.server.launch import security_checks, start_checks
from prefmix.weights.store.errors import StoreMissingError
from prefmix.weights.store.profiles import ProfileSet, check_num_profiles
from prefmix.weights.store.store import WeightsStore


def check_configuration(
    report: Report, config: ServeConfig, passthrough: Sequence[str], *, has_vllm: bool
) -> None:
    """Adds the findings about a configuration.

    Args:
      config: what `prefmix serve` would be started with.
      passthrough: the words after `--`.
      has_vllm: False leaves out what needs vLLM: its flags, and the comparison of the policies.
    """
    with report.errors("configuration"):
        spec = config.spec()
        config.engine_spec(spec)
        report.ok("configuration", f"{config.name}: {', '.join(spec.member_names)}")
        with report.errors("profiles"):
            profiles = config.profile_set(spec)
            check_num_profiles(len(profiles.profiles), config.max_profiles)
            report.ok("profiles", ", ".join(profiles.profiles))
            _check_store(report, config, spec, profiles)
        _check_ports(report, config, passthrough)
        with report.errors("keys and files"):
            security_checks.check_environment()
            start_checks.check_before_vllm(
                config, spec, passthrough, is_headless=config.is_headless(passthrough)
            )
            report.ok("keys and files", "keys, address and the policies' files can be read")
            _check_size(report, spec)
        if has_vllm:
            _check_engine(report, config, spec, passthrough)


def _check_store(
    report: Report, config: ServeConfig, spec: MixtureSpec, profiles: ProfileSet
) -> None:
    if config.weights_store is None:
        return
    with report.errors("weights store"):
        store = WeightsStore(
            config.weights_store,
            spec=spec,
            max_profiles=config.max_profiles,
            takes_added=config.adapter_slots > 0,
            takes_dormant=config.dormant_profiles,
        )
        path = Path(os.path.realpath(config.weights_store))
        can_write = os.access(path.parent, os.W_OK)
        try:
            found = store.read()
        except StoreMissingError:
            if not can_write:
                why = "cannot be written to" if path.parent.is_dir() else "does not exist"
                report.add("weights store", "error", f"the folder {path.parent} {why}")
                return
            names = ", ".join(profiles.profiles)
            report.ok("weights store", f"{path} will be made with {names}")
            return
        start_checks.check_added_policies(config, found)
        what = f"{path}, version {found.version}, {len(found.profiles)} profiles"
        if can_write:
            report.ok("weights store", what)
        else:
            report.add("weights store", "warning", f"{what}; read-only, so it takes no changes")


def _check_ports(report: Report, config: ServeConfig, passthrough: Sequence[str]) -> None:
    has_socket = any(word.startswith("--uds") for word in passthrough) or "uds" in config.engine
    if config.is_headless(passthrough):
        return
    if not has_socket:
        with report.errors("port"):
            start_checks.check_port(config.host, config.port)
            report.ok("port", f"{config.host} port {config.port} is free")
    if config.admin_port is not None:
        with report.errors("admin port"):
            start_checks.check_port(listener.HOST, config.admin_port, flag="--admin-port")
            report.ok("admin port", f"{listener.HOST} port {config.admin_port} is free")


def _check_size(report: Report, spec: MixtureSpec) -> None:
    """Compares the size of the checkpoints' files with the memory of the machine."""
    folders = [cached_folder(each.model, each.revision) for each in spec.checkpoints]
    known = {folder for folder in folders if folder is not None}
    size = sum(file.stat().st_size for folder in known for file in folder.glob("*.safetensors"))
    if missing := folders.count(None):
        report.add("downloads", "warning", f"{missing} checkpoints are not on this machine yet")
    if not size:
        return
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    text = f"checkpoints of {shown_bytes(size)}; the machine has {shown_bytes(total)} of memory"
    # Not all of it has to fit: layers that are equal are stored once, and GPUs have their own.
    report.add("size", "ok" if size < 0.8 * total else "warning", text)


def _check_engine(
    report: Report, config: ServeConfig, spec: MixtureSpec, passthrough: Sequence[str]
) -> None:
    from prefmix.server.launch.engine_args import flag_errors

    wrong = flag_errors(config, spec, passthrough)
    for sentence in wrong:
        report.add("flags", "error", sentence)
    args = None if wrong else _checked_arguments(report, config, spec, passthrough)
    with report.errors("policies"):
        trusts = args is not None and args.trust_remote_code
        checked = start_checks.check_checkpoints(config, spec, trust_remote_code=trusts)
        for warning in checked.warnings:
            report.add("policies", "warning", warning)
        report.ok("policies", checked.vocabulary_note or "they can be mixed")


def _checked_arguments(
    report: Report, config: ServeConfig, spec: MixtureSpec, passthrough: Sequence[str]
) -> Namespace | None:
    """vLLM's arguments; None if they are refused."""
    from prefmix.server.launch.engine_args import build_arguments

    args: Namespace | None = None
    with report.errors("flags"):
        args = build_arguments(config, spec, passthrough)
        args.api_key = api_keys(args.api_key) or None
        start_checks.check_socket(args)
        start_checks.check_tls(args)
        security_checks.check_open_address(args, allowed=config.allow_no_api_key or args.headless)
        start_checks.check_admin_port(config, admin_tokens(api_keys=api_keys(args.api_key)))
        for warning in security_checks.warnings(args, passthrough):
            report.add("flags", "warning", warning)
        report.ok("flags", "vLLM and the mixture take them")
    return args
