"""A mistyped folder is found at once, not after a minute of asking the hub."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from prefmix.mixing.checkpoints.hub import check_hub
from prefmix.mixing.checkpoints.safe_files import CheckpointFilesError
from prefmix.mixing.spec import MixtureSpec, Policy

PROXIES = ("https_proxy", "http_proxy", "all_proxy")


@pytest.fixture(autouse=True)
def without_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub is a port of this machine on which nobody listens."""
    monkeypatch.chdir(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"https://127.0.0.1:{probe.getsockname()[1]}")
    for name in PROXIES:
        for spelling in (name, name.upper()):
            monkeypatch.delenv(spelling, raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def spec(*models: str) -> MixtureSpec:
    policies = (Policy(name=f"p{index}", model=model) for index, model in enumerate(models))
    return MixtureSpec(policies=tuple(policies))


def test_a_name_that_nobody_knows_names_folders_like_it() -> None:
    for name in ("policies/helpful", "policies/harmless", "other"):
        Path(name).mkdir(parents=True)
    with pytest.raises(CheckpointFilesError) as caught:
        check_hub(spec("policies/helpful", "polices/harmles"))
    message = str(caught.value)
    assert message.startswith("policy 'p1': 'polices/harmles' is no folder here (did you mean ")
    assert "'policies/harmless'" in message
    assert "the hub cannot be asked: 127.0.0.1: Connection refused" in message
    assert "\n" not in message


def test_folders_need_no_hub(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    check_hub(spec(str(tmp_path / "a")))


def test_cached_models_and_adapters_need_no_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name, file in (("base", "config.json"), ("lora", "adapter_config.json")):
        cached = tmp_path / "hub" / f"models--org--{name}"
        (cached / "snapshots" / "abc").mkdir(parents=True)
        (cached / "snapshots" / "abc" / file).write_text("{}")
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text("abc")
    adapter = Policy(name="a", model="org/lora")
    check_hub(MixtureSpec(policies=(adapter,), base="org/base"))
    with pytest.raises(CheckpointFilesError, match="'org/lora' is no folder here"):
        check_hub(spec("org/lora"))


def test_a_hub_that_can_be_reached_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        check_hub(spec("org/model"))


def test_a_proxy_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    check_hub(spec("org/model"))


def test_the_offline_switch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointFilesError, match="HF_HUB_OFFLINE is set"):
        check_hub(spec("org/model"))
