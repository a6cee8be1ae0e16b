"""Real tokenizers and configs on disk, no parameters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig, LlamaConfig, Qwen2Config

from prefmix.mixing.checkpoints.compatibility import CompatibilityError, check_members
from prefmix.mixing.spec import MixtureSpec, Policy
from support.checkpoints.tiny_adapters import save_adapter
from support.checkpoints.tiny_policies import VOCAB_SIZE, build_tokenizer, save_policy


def save(folder: Path, *, tokenizer: Any = None, config: Any = None, **generation: Any) -> Path:
    tokenizer = tokenizer or build_tokenizer()
    (config or LlamaConfig(vocab_size=VOCAB_SIZE)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    GenerationConfig(**{"eos_token_id": 1, **generation}).save_pretrained(folder)
    return folder


def check(*folders: Path) -> tuple[str, ...]:
    policies = tuple(Policy(name=folder.name, model=str(folder)) for folder in folders)
    return check_members(MixtureSpec(policies=policies)).warnings


def test_same_tokenizer_passes_across_architectures_and_padding(tmp_path: Path) -> None:
    one = save(tmp_path / "one")
    two = save(tmp_path / "two", config=Qwen2Config(vocab_size=VOCAB_SIZE + 64))
    assert check(one, two) == ()


def with_other_vocabulary() -> Any:
    return build_tokenizer(vocab_size=VOCAB_SIZE - 10)


def with_other_end_token() -> Any:
    tokenizer = build_tokenizer()
    tokenizer.eos_token = "<s>"
    return tokenizer


def with_other_splitting() -> Any:
    from tokenizers import pre_tokenizers

    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


@pytest.mark.parametrize(
    ("make", "difference"),
    [
        (with_other_vocabulary, r"vocabularies, at index 310, differ \(one: '.*'; two: none\)"),
        (with_other_splitting, "tokenizers' pre_tokenizer rules differ"),
    ],
)
def test_different_tokenizers_are_refused_with_the_first_difference(
    tmp_path: Path, make: Callable[[], Any], difference: str
) -> None:
    one, two = save(tmp_path / "one"), save(tmp_path / "two", tokenizer=make())
    with pytest.raises(CompatibilityError, match=difference) as refused:
        check(one, two)
    assert "policies 'one' and 'two' cannot be mixed" in str(refused.value)


def test_a_renamed_padding_token_is_no_difference(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.pad_token = "</s>"
    assert check(save(tmp_path / "one"), save(tmp_path / "two", tokenizer=tokenizer)) == ()


def test_another_name_for_the_end_is_no_reason_to_refuse(tmp_path: Path) -> None:
    """A base and its chat model: one vocabulary, another token in the role of the end."""
    one, two = save(tmp_path / "one"), save(tmp_path / "two", tokenizer=with_other_end_token())
    (warning,) = check(one, two)
    assert "different special tokens (eos_token '</s>' and '<s>')" in warning
    assert "those of 'one' are used" in warning


def test_different_defaults_of_generation_warn(tmp_path: Path) -> None:
    one = save(tmp_path / "one", temperature=0.6, do_sample=True)
    two = save(tmp_path / "two", temperature=0.6, top_p=0.5, do_sample=True)
    (warning,) = check(one, two)
    assert "different defaults of generation (top_p none and 0.5); those of 'one'" in warning
    assert check(one, save(tmp_path / "three", temperature=0.6, do_sample=True)) == ()


def test_files_beside_an_adapter_that_differ_from_the_bases_are_told(tmp_path: Path) -> None:
    base = save_policy(tmp_path / "base", seed=0)
    adapter = save_adapter(tmp_path / "plain", base, seed=1)
    spec = MixtureSpec(policies=(Policy(name="plain", model=str(adapter)),), base=str(base))
    assert check_members(spec).warnings == ()
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(adapter)
    assert check_members(spec).warnings == ()
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(adapter)
    template, vocabulary = check_members(spec).warnings
    assert "'base' and 'plain' have different chat templates; that of 'base' is used" in template
    assert f"at index {VOCAB_SIZE}: none and '<think>'); that of 'base' is used" in vocabulary


def test_an_adapter_without_any_training_is_told(tmp_path: Path) -> None:
    """lora_B begins as zeros: such a policy is its base, which is legal and seldom meant."""
    base = save_policy(tmp_path / "base", seed=0)
    adapter = save_adapter(tmp_path / "plain", base, seed=1, size=0.0)
    spec = MixtureSpec(policies=(Policy(name="plain", model=str(adapter)),), base=str(base))
    (warning,) = check_members(spec).warnings
    assert warning.startswith("policy 'plain': every lora_B of its adapter is zero")


def test_different_chat_templates_warn_and_say_whose_is_used(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}"
    [warning] = check(save(tmp_path / "one"), save(tmp_path / "two", tokenizer=tokenizer))
    assert "different chat templates; that of 'one' is used" in warning
    assert "--chat-template" in warning


def test_different_end_tokens_of_generation_warn(tmp_path: Path) -> None:
    [warning] = check(save(tmp_path / "one"), save(tmp_path / "two", eos_token_id=[1, 5]))
    assert "([1] and [1, 5])" in warning


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    config = LlamaConfig(vocab_size=VOCAB_SIZE - 20)
    with pytest.raises(CompatibilityError, match="the model's vocabulary ends at 299"):
        check(save(tmp_path / "one", config=config))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CompatibilityError, match=r"policy 'gone': there is no folder .*gone"):
        check(tmp_path / "gone")


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CompatibilityError, match="policy 'empty': cannot read the config"):
        check(tmp_path / "empty")


def test_a_models_own_code_is_not_run_unasked(tmp_path: Path) -> None:
    folder = save(tmp_path / "coded")
    ran = tmp_path / "ran"
    (folder / "code.py").write_text(
        f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n"
        "from transformers import LlamaConfig\n\nclass Config(LlamaConfig):\n    pass\n"
    )
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"model_type": "of-its-own", "auto_map": {"AutoConfig": "code.Config"}}
    path.write_text(json.dumps(config))
    with pytest.raises(CompatibilityError, match="policy 'coded': cannot read the config"):
        check(folder)
    assert not ran.exists()


@pytest.mark.parametrize("name", ["AutoConfig", "AutoTokenizer"])
def test_code_in_a_models_folder_is_not_run(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    good, bad, ran = save(tmp_path / "good"), save(tmp_path / "bad"), tmp_path / "ran"
    (bad / "evil.py").write_text(f"from pathlib import Path\nPath({str(ran)!r}).touch()\n")
    file = bad / ("config.json" if name == "AutoConfig" else "tokenizer_config.json")
    settings = json.loads(file.read_text())
    kind = ["evil.Thing", "evil.Thing"] if name == "AutoTokenizer" else "evil.Thing"
    more: dict[str, Any] = {"auto_map": {name: kind}}
    more |= {"model_type": "evil"} if name == "AutoConfig" else {"tokenizer_class": "Evil"}
    file.write_text(json.dumps(settings | more))
    if name == "AutoTokenizer":
        (bad / "tokenizer.json").unlink()
    with pytest.raises(CompatibilityError, match="policy 'bad'"):
        check(good, bad)
    assert not ran.exists()


def broken_files() -> list[tuple[str, dict[str, Any]]]:
    broken: dict[str, dict[str, list[Any]]] = {
        "config.json": {"vocab_size": ["x", None, 2.5], "model_type": [3]},
        "tokenizer.json": {"added_tokens": [None, ["x"]], "decoder": [3], "model": [{}], "x": [1]},
        "generation_config.json": {"eos_token_id": [[[]]]},
    }
    return [
        (name, {key: value})
        for name, changes in broken.items()
        for key, values in changes.items()
        for value in values
    ]


@pytest.mark.parametrize(("name", "change"), broken_files())
def test_whatever_a_library_raises_is_one_sentence(
    tmp_path: Path, name: str, change: dict[str, Any]
) -> None:
    """transformers and tokenizers raise TypeError, AttributeError and even Exception itself."""
    bad = save(tmp_path / "bad")
    content = json.loads((bad / name).read_text())
    (bad / name).write_text(json.dumps({**content, **change}))
    with pytest.raises(CompatibilityError, match=r"^policy 'bad': [^\n]*$"):
        check(bad)
