"""The configuration: files, flags on top, and one sentence for everything that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefmix.server.config.config_file import load_config
from prefmix.server.config.errors import ConfigError
from prefmix.server.config.limits import Limits
from prefmix.server.config.model_paths import policies_from_flags
from prefmix.server.config.serve_config import ServeConfig


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two model folders in it."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "mixture.yaml"
    path.write_text(text)
    return path


def refusal(folder: Path, text: str, **overrides: Any) -> str:
    def load() -> None:
        config = load_config(write(folder, text), overrides)
        config.profile_set(config.spec())

    with pytest.raises(ConfigError) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_are_local_and_uniform(folder: Path) -> None:
    config = load_config(write(folder, "policies: {a: ./one, b: org/model}"), {})
    spec = config.spec()
    assert (config.name, config.host, config.port) == ("prefmix", "127.0.0.1", 8000)
    assert [policy.model for policy in spec.policies] == [str(folder / "one"), "org/model"]
    assert (spec.reference, spec.weight_space) == (None, "simplex")
    assert config.profile_set(spec).profiles == {"default": (0.5, 0.5)}


def test_every_key_is_read(folder: Path) -> None:
    config = load_config(
        write(
            folder,
            """
            name: my/mixture
            policies:
              a: one
              b: {model: org/model, revision: v2, hf_overrides: {rope_theta: 5}}
            reference: {base: ../{folder}/two}
            weight_space: affine
            vocabulary: common
            defaults_from: base
            profiles: {bold: {a: 1.5, b: -0.5}, plain: {a: 1}}
            default_profile: plain
            host: 0.0.0.0
            port: 8123
            engine: {max_model_len: 64, enforce-eager: true}
            """.replace("{folder}", folder.name),
        ),
        {},
    )
    spec = config.spec()
    assert spec.member_names == ("a", "b", "base")
    assert spec.policies[0].model == str(folder / "one"), "an existing folder, relative to the file"
    assert (spec.policies[1].model, spec.policies[1].revision) == ("org/model", "v2")
    assert spec.policies[1].hf_overrides == {"rope_theta": 5}
    assert (spec.vocabulary, spec.defaults_from, spec.defaults) == (
        "common",
        "base",
        spec.reference,
    )
    assert spec.reference is not None
    assert spec.reference.model == str(folder / "two")
    profiles = config.profile_set(spec)
    assert profiles.profiles == {"bold": (1.5, -0.5, 0.0), "plain": (1.0, 0.0, 0.0)}
    assert profiles.default == "plain"
    assert config.engine == {"max_model_len": 64, "enforce-eager": True}


def test_limits_on_load_are_read_and_have_defaults(folder: Path) -> None:
    path = write(folder, "{policies: {a: org/a}, max_waiting: 0, drain_timeout: 45}")
    limits = load_config(path, {"request_timeout": 2.5, "max_body_bytes": 2048}).limits()
    assert (limits.max_waiting, limits.request_timeout) == (0, 2.5)
    assert (limits.max_body_bytes, limits.drain_timeout) == (2048, 45)
    assert limits.shutdown_timeout == 55, "vLLM kills what has not ended by then"
    assert load_config(write(folder, "policies: {a: org/a}"), {}).limits() == Limits()
    assert Limits().request_timeout == 600
    for word in ("none", "null"):
        path = write(folder, f"{{policies: {{a: org/a}}, request_timeout: {word}}}")
        assert load_config(path, {}).limits().request_timeout is None


def test_hosts_and_proxies_are_lists(folder: Path) -> None:
    path = write(folder, "{policies: {a: org/a}, allowed_hosts: [llm.example.org, .svc, '*']}")
    config = load_config(path, {"trusted_proxies": ["10.0.0.0/8", "::1"]})
    assert config.allowed_hosts == ("llm.example.org", ".svc", "*")
    assert config.trusted_proxies == ("10.0.0.0/8", "::1")


def test_flags_override_the_file(folder: Path) -> None:
    path = write(folder, "{policies: {a: ./missing}, port: 1234, name: file}")
    config = load_config(path, {"policies": {"b": {"model": "org/b"}}, "port": 4321})
    assert (list(config.policies), config.port, config.name) == (["b"], 4321, "file")


def test_flags_alone_are_enough(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    table = policies_from_flags("--policy", ["a=one", "b=./two", "c=org/model"])
    assert [entry["model"] for entry in table.values()] == [
        str(folder / "one"),
        str(folder / "two"),
        "org/model",
    ]
    assert load_config(None, {"policies": table}).spec().policy_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "polices: {a: org/a}",
            ["'polices'", "did you mean 'policies'", "prefmix help serve", "mixture.yaml"],
        ),
        ("policies: {a: {model: org/a, revison: x}}", ["'revison'", "'revision'", "policies.a"]),
        ("policies: {a: {revision: x}}", ["policies.a.model", "missing"]),
        ("policies: {a: 3}", ["policies.a", "3", "expected a folder or hub id"]),
        ("policies:\n\ta: org/a", ["line 2", "a tab stands here"]),
        ("policies:\n  a: org/a\n b: org/b", ["line 3", "indented otherwise"]),
        ("policies: {a: org/a}\n  port: 1", ["line 2", "indented"]),
        ("policies: {a: org/a}\nmax-waitng: 1", ["'max-waitng'", "did you mean 'max_waiting'"]),
        ("policies: [a, b]", ["policies", '["a", "b"]', "mapping"]),
        ("policies: {1: org/a}", ["policies", "1", "string"]),
        ("policies: {no: org/a}", ["policies", "false", "string"]),
        ("{policies: {a: org/a}, max_waiting: -1}", ["max_waiting", "-1", "greater than or equal"]),
        ("{policies: {a: org/a}, request_timeout: 0}", ["request_timeout", "0", "greater than 0"]),
        ("{policies: {a: org/a}, drain_timeout: .inf}", ["drain_timeout", "Infinity", "finite"]),
        ("{policies: {a: org/a}, max_body_bytes: 10}", ["max_body_bytes", "10", "1024"]),
        ("{policies: {a: org/a}, max_connections: 0}", ["max_connections", "0", "equal to 1"]),
        (
            "{policies: {a: org/a}, allowed_hosts: ['http://x']}",
            ["allowed_hosts.0", "'http://x'", "without scheme and port"],
        ),
        (
            "{policies: {a: org/a}, trusted_proxies: [proxy]}",
            ["trusted_proxies.0", "'proxy'", "a network such as 10.0.0.0/8"],
        ),
        ("policies: {}", ["at least one policy"]),
        ("port: 8000", ["at least one policy", "--policy"]),
        ("policies: {a b: org/a}", ["'a b'", "letters"]),
        ("policies: {a@b: org/a}", ["'a@b'", "letters"]),
        ("policies: {a: org/a, a: org/b}", ["line 1", "'a'", "twice"]),
        (
            "policies:\n  a: org/a\nport: 1\npolicies:\n  b: org/b",
            ["line 4", "'policies'", "twice"],
        ),
        ("policies: {a: org/a}\nreference: {a: org/a}", ["'a'", "own name"]),
        ("policies: {a: org/a}\nreference: {x: org/x, y: org/y}", ["exactly one", "x, y"]),
        ("policies: {a: org/a}\nreference: {}", ["exactly one", "none"]),
        (
            "policies: {a: org/a}\nallow_unsafe_engine_flags: true",
            ["allow_unsafe_engine_flags", "--allow-unsafe-engine-flags"],
        ),
        ("policies: {a: org/a}\nallow_unsafe_weights: 1", ["--allow-unsafe-weights"]),
        ("policies: {a: ./missing}", [": a: ", "missing", "does not exist", "hub id"]),
        ("policies: {a: /nowhere/at/all}", [": a: ", "/nowhere/at/all", "does not exist"]),
        ("policies: {a: ./mixture.yaml}", [": a: ", "is not a folder"]),
        ("policies: {a: ''}", ["'a'", "no model"]),
        ("policies: {a: org/a}\nport: '8000'", ["port", "'8000'", "integer"]),
        ("policies: {a: org/a}\nport: 70000", ["port", "70000", "65535"]),
        ("policies: {a: org/a}\nport: true", ["port", "true", "integer"]),
        (
            "policies: {a: org/a}\nweight_space: cone",
            ["weight_space", "'cone'", "simplex", "affine"],
        ),
        (
            "policies: {a: org/a}\nvocabulary: any",
            ["vocabulary", "'any'", "'same', 'prefix' or 'common'"],
        ),
        ("policies: {a: org/a}\ndefaults_from: b", ["defaults_from is 'b'", "allowed: a"]),
        (
            "policies: {a: {model: org/a, hf_overrides: [1]}}",
            ["policies.a.hf_overrides", "[1]", "mapping"],
        ),
        (
            "policies: {a: {model: org/a, hf_overrides: {day: 2026-11-21}}}",
            ["'a'", "hf_overrides", "JSON"],
        ),
        (
            "policies: {a: {model: org/a, hf_overrides: {architectures: [X]}}}",
            ["'a'", "'architectures'", "prefmix sets itself"],
        ),
        ("policies: {a: org/a}\nname: a@b", ["name", "'a@b'", "separates the profile"]),
        ("policies: {a: org/a}\nengine: [x]", ["engine", "mapping"]),
        ("policies: {a: org/a}\nprofiles: {x: {b: 1}}", ["profile 'x'", "'b'", "a"]),
        ("policies: {a: org/a}\nprofiles: {x: {a: .nan}}", ["profile 'x'", "NaN", "finite"]),
        ("policies: {a: org/a}\nprofiles: {x: 3}", ["profiles.x", "3"]),
        (
            "policies: {a: org/a}\nprofiles: {x: {weights: {a: 1}, mixing: sum}}",
            ["profile 'x'", "mixing", "'sum'", "logits, parameters"],
        ),
        ("policies: {a: org/a}\nmixing: parameters", ["mixing", "full checkpoints", "average"]),
        ("policies: {a: org/a}\nmixing: sum", ["mixing", "'sum'", "'parameters'"]),
        ("policies: {a: org/a}\ndefault_profile: x", ["'x'", "does not exist", "default"]),
        ("policies: {a: org/a", ["line 1", "mixture.yaml"]),
        ("- a\n- b", ['["a", "b"]', "mapping"]),
        ("policies: {[a]: b}", ["unhashable"]),
    ],
)
def test_whatever_is_wrong_is_one_sentence(folder: Path, text: str, parts: list[str]) -> None:
    message = refusal(folder, text)
    assert [part for part in parts if part not in message] == [], message


def test_a_bad_flag_is_not_blamed_on_the_file(folder: Path) -> None:
    message = refusal(folder, "policies: {a: org/a}", port=99999)
    assert "99999" in message
    assert "mixture.yaml" not in message


@pytest.mark.parametrize("name", ["missing.yaml", "folder", "binary"])
def test_unreadable_files_are_named(folder: Path, name: str) -> None:
    (folder / "folder").mkdir()
    (folder / "binary").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match=name):
        load_config(folder / name, {})


def test_profiles_may_have_a_way_to_mix_beside_their_weights(folder: Path) -> None:
    """A policy may be named like either key."""
    text = (
        "base: org/base\nadapters: {weights: org/a, mixing: org/b}\nmixing: parameters\n"
        "profiles: {x: {weights: 1, mixing: 3}, y: {weights: {weights: 1}, mixing: logits}}"
    )
    config = load_config(write(folder, text), {})
    profiles = config.profile_set(config.spec())
    assert profiles.profiles == {"x": (0.25, 0.75), "y": (1.0, 0.0)}
    assert profiles.mixings == {"y": "logits"}
    assert config.spec().mixing == "parameters"


def test_merge_keys_of_yaml_are_no_duplicates(folder: Path) -> None:
    text = "policies: {a: org/a}\nprofiles:\n  x: &x {a: 1}\n  y: {<<: *x}"
    assert load_config(write(folder, text), {}).profiles == {"x": {"a": 1}, "y": {"a": 1}}


def test_keys_and_flags_are_documented_alike() -> None:
    """Each key of the file but `engine` and the profiles can also be given as a flag."""
    from prefmix.server.cli.serve import add_arguments
    from prefmix.server.cli.shell.commands import OneSentenceParser

    parser = OneSentenceParser()
    add_arguments(parser)
    flags = {action.dest for action in parser._actions} - {"help", "config"}
    keys = set(ServeConfig.model_fields) - {"engine", "profiles", "default_profile"}
    plural = {"policy": "policies", "adapter": "adapters", "system": "systems"}
    assert {plural.get(flag, flag) for flag in flags} == keys


def test_base_and_adapters_make_a_shared_trunk(folder: Path) -> None:
    text = "{base: ./one, adapters: {a: ./two, b: org/adapter}, reference: {plain: ./one}}"
    spec = load_config(write(folder, text), {}).spec()
    assert (spec.base, spec.policy_names) == (str(folder / "one"), ("a", "b"))
    assert [policy.model for policy in spec.adapters] == [str(folder / "two"), "org/adapter"]
    assert [member.name for member in spec.checkpoints] == ["base"]
    assert spec.reference is not None
    assert spec.reference.model == spec.base


def test_policies_from_flags_replace_a_trunk_of_the_file_and_the_other_way_round(
    folder: Path,
) -> None:
    trunk = write(folder, "{base: ./one, adapters: {a: ./two}}")
    assert load_config(trunk, {"policies": {"p": {"model": "org/m"}}}).spec().base is None
    full = write(folder, "policies: {p: ./one}")
    overrides = {"base": {"model": "org/m"}, "adapters": {"a": {"model": "org/a"}}}
    assert load_config(full, overrides).spec().base == "org/m"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{base: ./one}", ["base needs at least one adapter", "--adapter NAME=PATH"]),
        ("{adapters: {a: ./one}}", ["adapters need the model they adapt", "--base MODEL"]),
        ("{base: ./one, policies: {a: ./two}}", ["policies and base are both given"]),
        (
            "{base: ./one, adapters: {a: ./two}, reference: {r: ./two}}",
            ["with a base the reference is the base itself", "one"],
        ),
        (
            "{base: ./one, adapters: {a: {model: ./two, hf_overrides: {rope_theta: 5}}}}",
            ["'a' has hf_overrides", "--hf-overrides", "under engine:"],
        ),
        (
            "{base: {model: ./one, hf_overrides: {rope_theta: 5}}, adapters: {a: ./two}}",
            ["base has hf_overrides", "--hf-overrides"],
        ),
        ("{base: ./none, adapters: {a: ./two}}", [": base: ", "does not exist"]),
        ("{base: ./one, adapters: {a: ./none}}", [": a: ", "does not exist"]),
    ],
)
def test_a_trunk_that_cannot_be_is_refused(folder: Path, text: str, words: list[str]) -> None:
    message = refusal(folder, text)
    assert all(word in message for word in words), message


def test_a_file_without_an_end_is_no_configuration() -> None:
    with pytest.raises(ConfigError, match="more than 16777216 characters"):
        load_config(Path("/dev/zero"), {})


def test_engines_alone_are_known_by_flag_or_file(folder: Path) -> None:
    policies = "policies: {a: ./one, b: ./two}\n"
    plain = load_config(write(folder, policies), {})
    assert not plain.is_headless(["--max-model-len", "64"])
    assert plain.is_headless(["--headless"])
    for word, is_headless in (("true", True), ("false", False)):
        text = f"{policies}engine: {{headless: {word}}}\n"
        assert load_config(write(folder, text), {}).is_headless([]) is is_headless
