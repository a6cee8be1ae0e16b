"""The leftovers of a killed run are removed at the next start, and nothing else is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefmix.mixing.run_folder import RECORD, Segment, note, segments, start_of
from prefmix.server.config import run_folder as run_folders
from prefmix.server.config.run_folder import remove_leftovers, run_folder

PROGRAM = """
import os, sys, time
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
from prefmix.mixing.run_folder import note
from prefmix.server.config.run_folder import run_folder
with run_folder() as folder:
    resource_tracker.register = lambda *_: None
    memory = shared_memory.SharedMemory(create=True, size=4096)
    note(folder, memory.name)
    (folder / ("vllm_dist_" + "0" * 31 + "%x" % (os.getpid() % 16))).touch()
    print(folder, memory.name, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture
def other_run() -> Iterator[tuple[subprocess.Popen[str], Path, Path]]:
    """(process, its folder, its shared memory) of another run."""
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder, name = process.stdout.readline().split()
        memory = Path("/dev/shm") / name
        try:
            yield process, Path(folder), memory
        finally:
            process.kill()
            memory.unlink(missing_ok=True)


def test_a_folder_and_its_memory_end_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folders, "END_S", 0.0)
    memory = Path(f"/dev/shm/psm_{os.getpid():08x}")
    memory.touch()
    with run_folder() as folder:
        note(folder, memory.name)
        assert segments(folder) == [Segment(memory.name, os.getpid(), start_of(os.getpid()) or 0)]
        # As if another process had made it, and were gone.
        (folder / RECORD).write_text(f"{memory.name} {os.getpid()} 1\n")
    assert not folder.exists()
    assert not memory.exists()


def test_only_dead_runs_are_removed(
    other_run: tuple[subprocess.Popen[str], Path, Path],
) -> None:
    process, folder, memory = other_run
    remove_leftovers()
    assert folder.is_dir()
    assert memory.exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert folder.is_dir()
    assert memory.exists(), "nothing would be left to remove"
    with run_folder():
        assert not folder.exists()
        assert not memory.exists()


def test_memory_of_a_process_that_outlives_its_run_stays(
    other_run: tuple[subprocess.Popen[str], Path, Path],
) -> None:
    """The lock is free, but the process that made the memory still runs."""
    _, alive, memory = other_run
    dead = Path(tempfile.mkdtemp(prefix="prefmix-"))
    (dead / RECORD).write_text((alive / RECORD).read_text())
    remove_leftovers()
    assert dead.is_dir()
    assert memory.exists()


def test_what_is_not_ours_for_sure_stays(tmp_path: Path) -> None:
    outside = Path(f"/dev/shm/psm_test_{os.getpid()}")
    named = Path(f"/dev/shm/psm_{os.getpid():08x}")
    try:
        for path in (outside, named):
            path.touch()
        for name, record in {
            "prefmix-without-record": None,
            "prefmix-strange": f"../{named.name} 1 1\n{outside.name} 1 1\npsm_ 1\n\xff\n",
            "other-program": f"{named.name} 999999999 1\n",
        }.items():
            (tmp_path / name).mkdir()
            (tmp_path / name / "file").touch()
            if record is not None:
                (tmp_path / name / RECORD).write_text(record)
        (tmp_path / "prefmix-link").symlink_to(tmp_path / "other-program")
        (tmp_path / "prefmix-file").touch()
        remove_leftovers()
        assert outside.exists()
        assert named.exists()
        left = {path.name for path in tmp_path.iterdir()}
        assert left >= {"prefmix-without-record", "other-program", "prefmix-link", "prefmix-file"}
        assert (tmp_path / "other-program" / "file").exists()
    finally:
        outside.unlink()
        named.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_another_users_folder_stays(tmp_path: Path) -> None:
    for path in (tmp_path / "prefmix-folder", tmp_path / "prefmix-record"):
        path.mkdir()
        (path / RECORD).touch()
    os.chown(tmp_path / "prefmix-folder", 4321, -1)
    os.chown(tmp_path / "prefmix-record" / RECORD, 4321, -1)
    remove_leftovers()
    assert {path.name for path in tmp_path.iterdir()} == {"prefmix-folder", "prefmix-record"}


def test_the_shared_memory_of_a_group_of_ranks_goes_too(
    other_run: tuple[subprocess.Popen[str], Path, Path],
) -> None:
    process, folder, _ = other_run
    (file,) = folder.glob("vllm_dist_*")
    shared = Path(f"/dev/shm/{file.name}-tp:0-[0-1]-cpushm_0")
    shared.touch()
    process.kill()
    process.wait()
    remove_leftovers()
    assert not shared.exists()


def test_each_process_of_a_run_notes_what_it_makes(tmp_path: Path) -> None:
    """In a process of its own, because the standard library's class is changed."""
    (tmp_path / RECORD).touch()
    program = (
        "import sys, types\n"
        "module = types.ModuleType('vllm.utils.network_utils')\n"
        "package = types.ModuleType('vllm.utils'); package.network_utils = module\n"
        "metrics = types.ModuleType('vllm.v1.metrics'); metrics.prometheus = types.ModuleType('')\n"
        "sys.modules |= {'vllm': types.ModuleType('vllm'), 'vllm.utils': package}\n"
        "sys.modules |= {'vllm.v1': types.ModuleType('vllm.v1'), 'vllm.v1.metrics': metrics}\n"
        "from multiprocessing import shared_memory\n"
        "from prefmix.mixing.workarounds.run_record import keep_record\n"
        "keep_record(); keep_record()\n"
        "memory = shared_memory.SharedMemory(create=True, size=64)\n"
        "again = shared_memory.SharedMemory(name=memory.name)\n"
        "again.close(); memory.close(); memory.unlink()\n"
        "made = metrics.prometheus.tempfile.TemporaryDirectory()\n"
        "print(memory.name, module.tempfile.gettempdir(), made.name)"
    )
    environ = {**os.environ, "PREFMIX_RUN_FOLDER": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    name, folder, made = run.stdout.split()
    assert Path(made).parent == tmp_path
    (segment,) = segments(tmp_path)
    assert (segment.name, folder, segment.has_owner) == (name, str(tmp_path), False)
