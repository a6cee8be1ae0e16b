"""Slots of a configuration: what they need, and what they cannot be had with."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefmix.server.cli.main import main
from prefmix.server.config.config_file import load_config
from prefmix.server.config.errors import ConfigError
from prefmix.server.config.serve_config import ServeConfig
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
    assert (spec.has_prompts, engine.has_prompts) == (False, True)
    without = ServeConfig.model_validate({**BASE, **SLOTS, "slot_prompts": False})
    assert without.engine_spec(spec).has_prompts is False
    without = ServeConfig.model_validate({**BASE, **SLOTS, "adapter_slots_without_kv": 1})
    assert without.engine_spec(spec).num_kv_members == 2
    plain = ServeConfig.model_validate(BASE)
    assert plain.engine_spec(plain.spec()) == plain.spec()


def test_slots_and_prompts_of_the_configuration_go_together() -> None:
    """A server that takes prompts only needs no folder of adapters."""
    prompted = {**BASE, "adapter_slots": 2, "systems": {"a": "Be brief."}}
    config = ServeConfig.model_validate(prompted)
    engine = config.engine_spec(config.spec())
    assert (engine.adapter_slots, engine.has_prompts) == (2, True)
    assert engine.prompts_sha256 == config.prompts().sha256
    open_to_requests = {**prompted, "slot_prompts": False, "policies_dir": "x"}
    config = ServeConfig.model_validate(open_to_requests)
    assert config.engine_spec(config.spec()).has_prompts


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {**BASE, "adapter_slots": 2, "slot_prompts": False},
            "adapter_slots need --policies-dir FOLDER",
        ),
        ({**BASE, "policies_dir": "x"}, "no slots for what it holds"),
        ({**BASE, "policies_manifest": "x"}, "no slots for the policies that it"),
        ({"policies": {"a": {"model": "org/a"}}, **SLOTS}, "these policies are full checkpoints"),
        ({**BASE, **SLOTS, "adapter_slots_without_kv": 3}, "give --adapter-slots 3 or more"),
        ({**BASE, "adapter_slots_without_kv": 1}, "adapter_slots, which are 0"),
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


def test_a_start_that_could_not_give_kept_policies_their_prompts_ends_before_the_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ServeConfig.model_validate(BASE)
    store = WeightsStore(tmp_path / "w.json")
    store.create(config.profile_set(config.spec()))
    kind = AddedPolicy.of(system="Be the secret.")
    store.change(lambda old: edits.with_policy(old, "kind", kind, spec=config.spec()))
    words = ["serve", "--base", "org/base", "--adapter", "a=org/a", "--adapter-slots", "1"]
    words += ["--policies-dir", str(tmp_path), "--weights-store", str(tmp_path / "w.json")]
    for flags, reason in (
        (["--no-slot-prompts"], "takes none; start it without --no-slot-prompts"),
        (["--mixing", "parameters"], "mixing is parameters, which is one model"),
    ):
        assert main([*words, *flags]) == 2
        said = capsys.readouterr().err
        assert "w.json has added policies with prompts of their own (kind)" in said
        assert reason in said
        assert "secret" not in said


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
    kind = ["--adapter-slots", "2", "--adapter-slots-without-kv", "1", *slots[2:]]
    assert main([*words, *kind, *kept]) == 2
    error = capsys.readouterr().err
    assert "2 slots for them, 1 of them without KV cache" in error
    assert "start it with --adapter-slots 3 --adapter-slots-without-kv 1 or more" in error


def test_a_manifest_needs_a_folder_to_watch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["serve", "--base", "org/base", "--adapter", "a=org/a", "--adapter-slots", "1"]
    words += ["--policies-dir", str(tmp_path), "--weights-store", str(tmp_path / "w.json")]
    assert main([*words, "--policies-manifest", str(tmp_path / "gone" / "policies.yaml")]) == 2
    assert "there is no such folder to watch" in capsys.readouterr().err
    assert not (tmp_path / "w.json").exists()
