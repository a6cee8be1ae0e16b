"""`prefmix doctor` finds what a start would stumble over, and starts, makes and changes nothing."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefmix.server.cli.doctor import command, configuration, machine
from prefmix.server.cli.doctor.report import Report
from prefmix.server.cli.main import main
from prefmix.server.config.config_file import load_config
from prefmix.server.launch.installation import InstallationError
from prefmix.server.launch.terminal import stages
from prefmix.weights.store.added import AddedPolicy
from prefmix.weights.store.edits import with_policy
from prefmix.weights.store.profiles import build_profile_set
from prefmix.weights.store.store import WeightsStore
from support.server_process import free_port

ROOT = Path(__file__).resolve().parents[5]
CONFIG = ROOT / "policies" / "demo" / "serve.yaml"


@pytest.fixture(autouse=True)
def without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks of vLLM have tests of their own; here it is not imported."""
    monkeypatch.setattr(machine, "import_vllm", lambda: None)
    monkeypatch.setattr(machine, "check_entry_points", lambda: None)
    monkeypatch.setattr(machine, "check_front_end", lambda: None)
    monkeypatch.setattr(machine, "_check_processor", lambda report: None)
    monkeypatch.setattr(configuration, "_check_engine", lambda *_: None)
    for name in ("PREFMIX_API_KEY", "PREFMIX_ADMIN_TOKEN", "VLLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def doctor(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and each check's (status, text)."""
    code = main(["doctor", "--json", *words])
    answer = json.loads(capsys.readouterr().out)
    found = {each["check"]: (each["status"], each["found"]) for each in answer["checks"]}
    statuses = {status for status, _ in found.values()}
    assert answer["status"] == ("error" if "error" in statuses else answer["status"])
    return code, found


def test_a_good_machine_and_configuration(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store = tmp_path / "weights.json"
    code, found = doctor(
        capsys, str(CONFIG), "--port", str(free_port()), "--weights-store", str(store)
    )
    assert code == 0
    assert {status for status, _ in found.values()} <= {"ok", "warning"}
    assert found["configuration"] == ("ok", "demo: positive, concise, polite, reference")
    assert found["weights store"][1].startswith(f"{store} will be made with balanced")
    assert found["port"][1].endswith("is free")
    assert list(tmp_path.iterdir()) == [], "nothing is made"


def test_all_that_is_wrong_is_found_at_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "w.json").write_text("{")
    (tmp_path / "empty").mkdir()
    polite = CONFIG.parent / "checkpoints" / "polite"
    words = ["--policy", f"a={tmp_path}/empty", "--policy", f"b={polite}"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        words += ["--port", port, "--weights-store", str(tmp_path / "w.json")]
        code, found = doctor(capsys, *words)
    assert code == 1
    errors = {check: text for check, (status, text) in found.items() if status == "error"}
    assert set(errors) == {"weights store", "port", "keys and files"}
    assert f"port {port} on 127.0.0.1 is in use" in errors["port"]
    assert "w.json line 1 column 2: not JSON" in errors["weights store"]
    assert f"{tmp_path}/empty" in errors["keys and files"]


def test_an_added_policy_without_its_files_is_found(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = CONFIG.with_name("sharp.yaml")
    (tmp_path / "policies").mkdir()
    spec = load_config(config, {}).spec()
    store = WeightsStore(tmp_path / "w.json", spec=spec, takes_added=True)
    store.create(build_profile_set({}, spec))
    gone = AddedPolicy.of(adapter="careful/step-400", sha256="0" * 64)
    store.change(lambda profiles: with_policy(profiles, "careful", gone, spec=spec))
    words = ["--port", str(free_port()), "--weights-store", str(store.path), "--adapter-slots", "2"]
    code, found = doctor(capsys, str(config), *words, "--policies-dir", str(tmp_path / "policies"))
    assert (code, found["weights store"][0]) == (1, "error")
    assert "has the added policy 'careful', and adapter 'careful/step-400'" in str(found)


def test_it_says_what_takes_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Importing vLLM takes up to a minute on a busy machine."""
    told: list[str] = []

    @contextlib.contextmanager
    def shown(text: str) -> Iterator[None]:
        told.append(text)
        yield
        told.append("over")

    def import_vllm() -> None:
        assert told == ["checking this machine"]

    monkeypatch.setattr(stages, "shown", shown)
    monkeypatch.setattr(machine, "import_vllm", import_vllm)
    assert doctor(capsys)[0] == 0
    assert told == ["checking this machine", "over"]


def test_a_fault_is_told_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Also where several checks find it; and what cannot be read is not weighed."""
    folder = tmp_path / "cut"
    shutil.copytree(CONFIG.parent / "checkpoints" / "polite", folder)
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    _, found = doctor(capsys, "--policy", f"a={folder}", "--port", str(free_port()))
    assert found["keys and files"][0] == "error"
    assert "size" not in found
    report = Report()
    for check in ("keys and files", "policies"):
        with report.errors(check):
            raise ValueError("the file is cut off")
    report.ok("port", "it is free")
    report.ok("admin port", "it is free")
    assert [each.check for each in report.findings] == ["keys and files", "port", "admin port"]


def test_sizes_of_small_checkpoints_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    polite = CONFIG.parent / "checkpoints" / "polite"
    _, found = doctor(capsys, "--policy", f"a={polite}", "--port", str(free_port()))
    size = (polite / "model.safetensors").stat().st_size
    assert found["size"][1].startswith(f"checkpoints of {size / 1e3:.1f} kB; ")


def test_a_folder_that_is_missing_is_a_finding(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, found = doctor(capsys, "--policy", f"a={tmp_path}/none")
    assert code == 1
    assert f"{tmp_path}/none does not exist" in found["configuration"][1]


def test_an_open_address_without_a_key_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = doctor(capsys, str(CONFIG), "--host", "0.0.0.0", "--port", str(free_port()))
    assert code == 1
    assert found["keys and files"][0] == "error"
    assert "PREFMIX_API_KEY" in found["keys and files"][1]


def test_engines_alone_need_neither_port_nor_key(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = doctor(capsys, str(CONFIG), "--host", "0.0.0.0", "--", "--headless")
    assert code == 0
    assert "port" not in found


def test_a_broken_configuration_is_a_finding(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text("polcies: {a: x}\n")
    code, found = doctor(capsys, str(tmp_path / "c.yaml"))
    assert code == 1
    assert "polcies" in found["configuration"][1]
    assert found["python"][0] == "ok"


def test_a_configuration_that_is_not_there_is_wrong_usage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor", "/nonexistent/mixture.yaml"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith("prefmix: error: /nonexistent/mixture.yaml does not exist")


def test_a_missing_vllm_is_a_finding(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise InstallationError("vLLM is not installed; pip install it")

    monkeypatch.setattr(machine, "require_vllm", missing)
    code, found = doctor(capsys)
    assert code == 1
    assert found["packages"] == ("error", "vLLM is not installed; pip install it")
    assert "plugins" not in found


def test_a_full_temporary_folder_is_a_warning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "LEAST_TEMPORARY_BYTES", 2**60)
    code, found = doctor(capsys)
    assert code == 0
    assert found["temporary folder"][0] == "warning"


def test_the_table_has_a_line_a_finding(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["check", "status", "found"]
    assert all(line.split()[0] for line in lines)
    report = Report()
    assert report.status == "ok"
    report.add("a", "warning", "two\nlines")
    assert report.table().splitlines()[1].split() == ["a", "warning", "two", "lines"]
    assert command.add_arguments.__doc__
