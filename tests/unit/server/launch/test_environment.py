"""Environment defaults: only what is unset, and no plugin switched off."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from prefmix.server.config.errors import CommandError
from prefmix.server.launch.environment import (
    check_entry_points,
    set_cpu_defaults,
    set_keep_alive,
    set_logging,
    set_no_telemetry,
    set_plugins,
    set_run_folder,
    set_safe_path,
)


def plugins(given: str | None) -> list[str]:
    environ = {} if given is None else {"VLLM_PLUGINS": given}
    set_plugins(environ)
    return environ["VLLM_PLUGINS"].split(",")


def test_an_unset_list_becomes_everything_that_would_have_loaded() -> None:
    general = {point.name for point in entry_points(group="vllm.general_plugins")}
    assert general <= set(plugins(None))
    assert len(plugins(None)) == len(set(plugins(None)))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", ["prefmix"]),
        ("mine", ["mine", "prefmix"]),
        ("prefmix,mine", ["prefmix", "mine"]),
    ],
)
def test_the_users_list_is_kept(given: str, expected: list[str]) -> None:
    assert plugins(given) == expected


def test_a_missing_entry_point_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefmix.server.launch.environment.entry_points", lambda group: [])
    with pytest.raises(CommandError, match=r"vllm\.general_plugins"):
        check_entry_points()


def test_logging_defaults_yield_to_the_user() -> None:
    environ = {"VLLM_LOGGING_LEVEL": "INFO", "PREFMIX_LOG_LEVEL": "debug"}
    set_logging(environ)
    assert environ["VLLM_LOGGING_LEVEL"] == "INFO"
    quiet: dict[str, str] = {}
    set_logging(quiet)
    assert quiet["VLLM_LOGGING_LEVEL"] == "WARNING"


@pytest.mark.parametrize(
    ("given", "kv_cache_bytes", "space"),
    [
        ({}, None, "1"),
        ({"VLLM_CPU_KVCACHE_SPACE": "8"}, None, "8"),
        ({}, 1 << 30, None),
    ],
)
def test_the_cpu_cache_gets_a_size_only_if_it_has_none(
    given: dict[str, str], kv_cache_bytes: int | None, space: str | None
) -> None:
    environ = dict(given)
    said = set_cpu_defaults(environ, kv_cache_bytes=kv_cache_bytes)
    assert environ.get("VLLM_CPU_KVCACHE_SPACE") == space
    assert bool(said) == (given == {} and kv_cache_bytes is None)
    assert environ["VLLM_USE_AOT_COMPILE"] == "0"


def test_connections_outlive_those_of_proxies_unless_the_user_says_otherwise() -> None:
    environ: dict[str, str] = {}
    set_keep_alive(environ)
    assert int(environ["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"]) > 60
    chosen = {"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "5"}
    set_keep_alive(chosen)
    assert chosen["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"] == "5"


def test_nothing_is_reported_to_others_unless_asked_for() -> None:
    environ = {"VLLM_NO_USAGE_STATS": "0"}
    set_no_telemetry(environ)
    assert environ == {"VLLM_NO_USAGE_STATS": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
    unset: dict[str, str] = {}
    set_no_telemetry(unset)
    assert unset["VLLM_NO_USAGE_STATS"] == "1"


def test_children_take_no_package_from_the_working_directory(tmp_path: Path) -> None:
    """A child as vLLM's, which inspects a model."""
    (tmp_path / "yaml.py").write_text("raise RuntimeError('not to be imported')\n")
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    words = [sys.executable, "-m", "prefmix.server.config.yaml_file"]
    assert subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True).returncode == 1
    set_safe_path(environ)
    assert subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True).returncode == 0


def test_a_run_keeps_its_sockets_in_its_folder_if_their_paths_fit(tmp_path: Path) -> None:
    environ: dict[str, str] = {}
    set_run_folder(Path("/run/x"), environ)
    assert environ == {"PREFMIX_RUN_FOLDER": "/run/x", "VLLM_RPC_BASE_PATH": "/run/x"}
    environ = {"VLLM_RPC_BASE_PATH": "/elsewhere"}
    set_run_folder(tmp_path, environ)
    assert environ["VLLM_RPC_BASE_PATH"] == "/elsewhere"
    environ = {}
    set_run_folder(tmp_path / ("x" * 80), environ)
    assert "VLLM_RPC_BASE_PATH" not in environ
