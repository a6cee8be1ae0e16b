"""A stage is complete or missing; another run's folder is not touched."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefmix.policies.train import TrainError
from prefmix.policies.train.checkpoints import _last_complete
from prefmix.policies.train.stages import Stages

ABOUT = {"settings": {"seed": 0}, "data": {"pairs": {"sha256": "a"}}}


def _make(folder: Path, checkpoints: Path) -> dict[str, Any]:
    (folder / "result").write_text("done")
    return {"rows": 3}


def _fail(folder: Path, checkpoints: Path) -> dict[str, Any]:
    (folder / "half").write_text("")
    (checkpoints / "checkpoint-1").mkdir(parents=True)
    raise KeyboardInterrupt


def test_killed_stage_is_made_again_and_a_done_one_is_not(tmp_path: Path) -> None:
    stages = Stages(tmp_path / "out", ABOUT)
    first = stages.run("first", _make)
    with pytest.raises(KeyboardInterrupt):
        stages.run("second", _fail)
    assert not (tmp_path / "out").exists()

    again = Stages(tmp_path / "out", ABOUT)
    assert again.run("first", _fail) == first
    assert (again.folder / "second.checkpoints" / "checkpoint-1").exists(), "what to resume from"
    second = again.run("second", _make)
    assert [path.name for path in second.iterdir()] == ["result"]
    assert not (again.folder / "second.checkpoints").exists()
    manifest = json.loads((again.folder / "manifest.json").read_text())
    assert manifest["stages"] == {"first": {"rows": 3}, "second": {"rows": 3}}

    again.publish("second", keep=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["result"]
    assert (again.folder / "first").exists()


def test_each_stage_is_one_line(tmp_path: Path) -> None:
    lines: list[str] = []
    losses = [{"step": 1, "loss": 0.6931}, {"step": 8, "loss": 0.0364}]
    Stages(tmp_path / "out", ABOUT, tell=lines.append).run(
        "dpo", lambda *_: {"pairs": 60, "losses": losses}
    )
    again = Stages(tmp_path / "out", ABOUT, tell=lines.append)
    again.run("dpo", _fail)
    drawn = [{"step": 1, "loss": 0.0, "reward": -1.0}, {"step": 4, "loss": 0.0, "reward": 2.5}]
    again.run("policy", lambda *_: {"losses": drawn})
    won = [{"step": 1, "loss": 0.1, "preference": 0.5}, {"step": 2, "loss": 0.2, "preference": 0.7}]
    again.run("other", lambda *_: {"losses": won})
    assert lines == [
        "dpo: pairs 60, steps 8, loss 0.693 to 0.0364, 0 s",
        "dpo: pairs 60, steps 8, loss 0.693 to 0.0364, done before",
        "policy: steps 4, reward -1 to 2.5, 0 s",
        "other: steps 2, preference 0.5 to 0.7, 0 s",
    ]


def test_a_first_stage_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path, checkpoints: Path) -> dict[str, Any]:
        (folder / "half").write_text("")
        raise TrainError("bad row")

    stages = Stages(tmp_path / "out", ABOUT)
    with pytest.raises(TrainError):
        stages.run("split", fail)
    assert list(tmp_path.iterdir()) == []


def test_nothing_stays_beside_a_run_of_one_stage(tmp_path: Path) -> None:
    stages = Stages(tmp_path / "out", ABOUT)
    stages.run("policy", _make)
    stages.publish("policy", keep=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(TrainError, match="out exists; give another --output or remove it"):
        Stages(tmp_path / "out", ABOUT)


def test_other_settings_do_not_continue_a_run(tmp_path: Path) -> None:
    Stages(tmp_path / "out", ABOUT)
    Stages(tmp_path / "out", ABOUT)
    with pytest.raises(TrainError, match=r"another one: settings\.seed was 0 and is 1\. Remove"):
        Stages(tmp_path / "out", ABOUT | {"settings": {"seed": 1}})


def test_half_written_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    for step, state in ((9, '{"global_step": 9}'), (10, '{"global_step": 10}'), (11, '{"glob')):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-12").mkdir()
    assert _last_complete(tmp_path) == str(tmp_path / "checkpoint-10")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]
    assert _last_complete(tmp_path / "absent") is None
