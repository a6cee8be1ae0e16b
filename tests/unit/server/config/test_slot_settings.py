"""Slots of a configuration: what they need, and what they cannot be had with."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefmix.server.cli.main import main
from prefmix.server.config.errors import ConfigError
from prefmix.server.config.serve_config import ServeConfig, load_config
from prefmix.weights.store import edits
from prefmix.weights.store.added import AddedPolicy
from prefmix.weights.store.store import WeightsStore

BASE = {"base": {"model": "org/base"}, "adapters": {"a": {"model": "org/a"}}}
SLOTS = {"adapter_slots": 2, "policies_dir": "policies"}


def test_the_engine_has_slots_and_clients_do_not_see_them() -> None:
    config = ServeConfig.model_validate({**BASE, **SLOTS})
    spec = config.spec()
    assert spec.member_names == ("a",)
    engine = config.engine_spec(spec)
    assert (engine.adapter_slots, engine.max_adapter_rank, engine.num_members) == (2, 16, 3)
    plain = ServeConfig.model_validate(BASE)
    assert plain.engine_spec(plain.spec()) == plain.spec()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({**BASE, "adapter_slots": 2}, "adapter_slots need --policies-dir FOLDER"),
        ({**BASE, "policies_dir": "x"}, "no slots for what it holds"),
        ({"policies": {"a": {"model": "org/a"}}, **SLOTS}, "these policies are full checkpoints"),
        ({**BASE, **SLOTS, "request_prompts": True}, "cannot be had together yet"),
    ],
)
def test_slots_that_nothing_could_fill_are_refused(given: dict[str, object], words: str) -> None:
    config = ServeConfig.model_validate(given)
    with pytest.raises(ConfigError, match=words):
        config.engine_spec(config.spec())


def test_a_files_folder_of_policies_begins_at_the_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("base: org/base\nadapters: {a: org/a}\nadapter_slots: 1\npolicies_dir: more\n")
    assert load_config(file, {}).policies_dir == str(tmp_path / "more")


def test_a_server_keeps_what_is_added_and_needs_room_for_what_it_has_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["serve", "--base", "org/base", "--adapter", "a=org/a"]
    slots = ["--adapter-slots", "1", "--policies-dir", str(tmp_path)]
    assert main([*words, *slots]) == 2
    assert "adapter_slots need --weights-store PATH" in capsys.readouterr().err
    config = ServeConfig.model_validate(BASE)
    store = WeightsStore(tmp_path / "w.json")
    store.create(config.profile_set(config.spec()))
    added = AddedPolicy(adapter="new", sha256="0" * 64)
    for name in ("new", "newer"):
        store.change(lambda old, name=name: edits.with_policy(old, name, added, spec=config.spec()))
    kept = ["--weights-store", str(tmp_path / "w.json")]
    assert main([*words, *slots, *kept]) == 2
    assert "has 2 added policies, and this configuration 1 slots" in capsys.readouterr().err
    assert main([*words, *kept]) == 2
    assert "--adapter-slots 2 or more" in capsys.readouterr().err
