"""Policies' own prompts in the configuration: where they may stand, what is wrong with them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from prefmix.server.config.config_file import load_config
from prefmix.server.config.errors import ConfigError
from prefmix.server.config.prompt_settings import PromptSettings, systems_from_flags
from prefmix.server.config.serve_config import ServeConfig

SECRET = "You are the secret voice."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    return tmp_path


def load(folder: Path, text: str, **overrides: Any) -> ServeConfig:
    path = folder / "mixture.yaml"
    path.write_text(text)
    return load_config(path, overrides)


def refusal(folder: Path, text: str, **overrides: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, **overrides).spec()
    message = str(caught.value)
    assert "\n" not in message
    assert "secret" not in message
    return message


ONE_BASE = """
base: {model: ./one, revision: v1}
policies:
  helpful: {system: "You answer at length."}
  terse: {adapter: ./two, system: "You are brief."}
reference: {plain: {}}
"""


def test_a_policy_is_an_adapter_or_the_base_itself(folder: Path) -> None:
    config = load(folder, ONE_BASE)
    spec = config.spec()
    base = (str(folder / "one"), "v1")
    assert [(p.name, p.model) for p in spec.policies] == [
        ("helpful", base[0]),
        ("terse", str(folder / "two")),
    ]
    assert spec.adapter_members == (1,)
    assert spec.reference is not None
    assert (spec.reference.name, spec.reference.model, spec.reference.revision) == ("plain", *base)
    assert config.prompts().systems == {
        "helpful": "You answer at length.",
        "terse": "You are brief.",
    }
    assert spec.has_prompts


def test_full_checkpoints_have_prompts_too(folder: Path) -> None:
    config = load(folder, "policies: {a: {model: ./one, system: Hi.}, b: ./two}")
    assert config.prompts().systems == {"a": "Hi."}
    assert config.spec().base is None


def test_prompts_of_requests_alone_switch_them_on(folder: Path) -> None:
    spec = load(folder, "{policies: {a: ./one}, request_prompts: true}").spec()
    assert (spec.has_prompts, spec.prompts_sha256) == (True, None)
    plain = load(folder, "policies: {a: ./one}").spec()
    assert (plain.has_prompts, plain.prompts_sha256) == (False, None)


def test_flags_replace_texts_and_name_the_base(folder: Path) -> None:
    systems = {"helpful": "Another.", "third": "A third."}
    config = load(folder, ONE_BASE, systems=systems)
    assert config.spec().member_names == ("helpful", "terse", "third", "plain")
    assert config.prompts().systems == {
        "helpful": "Another.",
        "terse": "You are brief.",
        "third": "A third.",
    }
    alone = load_config(None, {"base": {"model": "org/m"}, "systems": systems}).spec()
    assert [policy.model for policy in alone.policies] == ["org/m", "org/m"]


def test_another_base_by_flag_keeps_the_policies_of_the_file(folder: Path) -> None:
    config = load(folder, ONE_BASE, base={"model": "org/m"})
    assert [policy.model for policy in config.spec().policies] == ["org/m", str(folder / "two")]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("policies: {a: {model: ./one, system: ''}}", ["policies.a.system is empty"]),
        ("policies: {a: {model: ./one, system: '  '}}", ["policies.a.system is empty"]),
        (
            "policies: {a: {model: ./one, system: [secret]}}",
            ["policies.a.system is of type list", "expected a text"],
        ),
        ("policies: {a: {model: ./one, system: 3}}", ["policies.a.system is of type int"]),
        ('policies: {a: {model: ./one, system: "x\\ud800"}}', ["system is no text in UTF-8"]),
        ("{policies: {a: ./one}, systems: {b: secret}}", ["systems names 'b'", "allowed: a"]),
        ("{policies: {a: ./one}, systems: {a: [secret]}}", ["systems.a is of type list"]),
        ("policies: {a: {system: secret}}", ["policies.a.model is missing"]),
        ("policies: {a: {adapter: ./one}}", ["'a' has an adapter", "needs a base"]),
        ("policies: {a: }", ["policies.a.model is missing"]),
        (
            "{base: ./one, policies: {a: {adapter: ./two, model: ./two}}}",
            ["policies and base are both given", "{adapter: PATH}"],
        ),
        ("{base: ./one, policies: {a: {revision: v2}}}", ["'a' has a revision", "the base itself"]),
        ("{base: ./one, adapters: {a: {system: secret}}}", ["adapters.a.model is missing"]),
        (
            "{base: ./one, policies: {a: {}}, adapters: {a: ./two}}",
            ["'a' is both among policies and among adapters"],
        ),
        ("{base: {model: ./one, system: secret}, adapters: {a: ./two}}", ["'system'", "base: "]),
        ("{base: ./one, policies: {a: {adapter: ./no}}}", [": a: ", "does not exist"]),
        ("{policies: {a: ./one}, request_prompts: 1}", ["request_prompts is 1"]),
        (
            "{base: ./one, policies: {a: {system: secret}}, mixing: parameters}",
            ["mixing is parameters", "one model that reads one prompt"],
        ),
        ("{policies: {a: ./one}, max_own_tokens: 0}", ["max_own_tokens is 0"]),
        ("{base: ./one}", ["--adapter NAME=PATH", "--system NAME=TEXT"]),
    ],
)
def test_what_cannot_be_is_refused_without_its_text(
    folder: Path, text: str, parts: list[str]
) -> None:
    message = refusal(folder, text)
    assert all(part in message for part in parts), message


def test_flags_hold_texts_or_name_files(tmp_path: Path) -> None:
    path = tmp_path / "kind.txt"
    path.write_text("You are kind.\n\n")
    given = systems_from_flags(["brief=Be brief. a=b", f"kind=@{path}"])
    assert given == {"brief": "Be brief. a=b", "kind": "You are kind.\n"}


@pytest.mark.parametrize(
    ("items", "words"),
    [
        (["brief"], "expected NAME=TEXT or NAME=@FILE"),
        (["=x"], "expected NAME=TEXT"),
        (["brief="], "expected NAME=TEXT"),
        (["a=x", "a=y"], "names 'a' twice"),
        (["a=@/nowhere/x"], "--system a: cannot read /nowhere/x: No such file"),
        (["a=@/"], "--system a: cannot read /: Is a directory"),
        (["a=@\0"], "--system a: cannot read"),
    ],
)
def test_wrong_flags_are_refused(items: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        systems_from_flags(items)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a text file in UTF-8"):
        systems_from_flags([f"a=@{path}"])


def test_the_hash_depends_on_names_and_texts_alone() -> None:
    one = PromptSettings(systems={"a": "x", "b": "y"})
    assert one.sha256 == PromptSettings(systems={"b": "y", "a": "x"}, request_prompts=True).sha256
    others = [{"a": "y", "b": "x"}, {"a": "x"}, {"a": "x", "b": "y", "c": "z"}]
    assert len({one.sha256, *(PromptSettings(systems=each).sha256 for each in others)}) == 4
    assert PromptSettings().sha256 is None


def test_no_text_is_shown_where_settings_are_printed() -> None:
    assert "secret" not in repr(PromptSettings(systems={"a": SECRET}))
