"""The folder of an average: whole or missing, and never in the place of something else."""

from pathlib import Path

import pytest

from prefmix.weights.averages.errors import ParameterAverageError
from prefmix.weights.averages.output_folder import RECORD, output_folder


def _write(output: Path, text: str = "new", *, force: bool = False, **settings: object) -> None:
    options = {"needed_bytes": 0, "sources": [], **settings}
    with output_folder(output, force=force, **options) as folder:  # type: ignore[arg-type]
        assert not any(folder.iterdir())
        (folder / "model").write_text(text)
        (folder / "model").chmod(0o600)
        (folder / RECORD).write_text("{}")


def test_folder_appears_whole(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out"
    _write(output)
    assert {path.name for path in output.iterdir()} == {"model", RECORD}
    assert [path.name for path in output.parent.iterdir()] == ["out"]
    assert {path.stat().st_mode & 0o777 for path in output.iterdir()} == {0o644}
    (tmp_path / "empty").mkdir()
    _write(tmp_path / "empty")
    assert (tmp_path / "empty" / "model").exists()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_after_an_error(tmp_path: Path, error: type[BaseException]) -> None:
    output = tmp_path / "out"
    _write(output, "old")

    def fail_halfway() -> None:
        with output_folder(output, force=True, needed_bytes=0, sources=[]) as folder:
            (folder / "model").write_text("half")
            raise error

    with pytest.raises(error):
        fail_halfway()
    assert (output / "model").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "out.partial"
    (left / "folder").mkdir(parents=True)
    (left / "half").write_text("")
    _write(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_only_an_earlier_average_is_replaced_and_only_if_asked(tmp_path: Path) -> None:
    output = tmp_path / "out"
    _write(output, "old")
    with pytest.raises(ParameterAverageError, match="exists; give another --output, or --force"):
        _write(output)
    _write(output, force=True)
    assert (output / "model").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    home = tmp_path / "home"
    home.mkdir()
    (home / "letters").write_text("")
    with pytest.raises(ParameterAverageError, match="not written by prefmix and is not replaced"):
        _write(home, force=True)
    assert (home / "letters").exists()


def test_what_is_read_is_not_replaced(tmp_path: Path) -> None:
    _write(tmp_path / "out")
    policy = tmp_path / "out" / "policy"
    policy.mkdir()
    for source in (policy, tmp_path / "out"):
        with pytest.raises(ParameterAverageError, match="which is read; give another --output"):
            _write(tmp_path / "out", force=True, sources=[source])
    assert policy.exists()


def test_places_that_cannot_hold_it_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    with pytest.raises(ParameterAverageError, match="is no folder"):
        _write(tmp_path / "file")
    with pytest.raises(ParameterAverageError, match="lies in a file"):
        _write(tmp_path / "file" / "out")
    with pytest.raises(ParameterAverageError, match="is a link"):
        _write(tmp_path / "link")
    with pytest.raises(ParameterAverageError, match="/proc/gone/out cannot be made"):
        _write(Path("/proc/gone/out"))
    with pytest.raises(ParameterAverageError, match=r"would hold 1000000000\.0 GB"):
        _write(tmp_path / "out", needed_bytes=10**18)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "link"]


def test_two_commands_do_not_write_one_folder(tmp_path: Path) -> None:
    with output_folder(tmp_path / "out", force=False, needed_bytes=0, sources=[]) as folder:
        (folder / "model").write_text("first")
        with pytest.raises(ParameterAverageError, match="another command is writing"):
            _write(tmp_path / "out")
    assert (tmp_path / "out" / "model").read_text() == "first"
