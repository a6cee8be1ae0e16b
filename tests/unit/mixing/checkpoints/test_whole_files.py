"""Damaged files of checkpoints and adapters: one sentence with the policy and the file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefmix.mixing.checkpoints.safe_files import CheckpointFilesError
from prefmix.mixing.checkpoints.whole_files import check_whole_files
from prefmix.mixing.spec import MixtureSpec, Policy
from support.checkpoints.tiny_policies import VOCAB_SIZE, save_policy


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(tmp_path_factory.mktemp("whole") / "whole", seed=1)


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "copy")


def check(whole: Path, folder: Path) -> None:
    policies = (Policy(name="good", model=str(whole)), Policy(name="bad", model=str(folder)))
    check_whole_files(MixtureSpec(policies=policies))


def refusal(whole: Path, folder: Path) -> str:
    with pytest.raises(CheckpointFilesError) as caught:
        check(whole, folder)
    message = str(caught.value)
    assert message.startswith(f"policy 'bad': {folder}/"), message
    assert "\n" not in message
    return message


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut(path: Path, num_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:num_bytes])


def test_whole_checkpoints_pass(whole: Path, copy: Path) -> None:
    check(whole, copy)


@pytest.mark.parametrize(
    ("name", "damage", "parts"),
    [
        ("model.safetensors", lambda path: cut(path, 955), ["cut short or damaged"]),
        ("model.safetensors", lambda path: cut(path, 20_000), ["cut short or damaged"]),
        ("model.safetensors", lambda path: cut(path, 4), ["cut short or damaged"]),
        ("model.safetensors", lambda path: path.write_bytes(b""), ["empty"]),
        ("model.safetensors", lambda path: path.write_bytes(b"\xff" * 99), ["damaged"]),
        ("config.json", lambda path: path.unlink(), ["missing", "Hugging Face"]),
        ("config.json", lambda path: path.write_text("[1]"), ["a list", "object"]),
        ("config.json", lambda path: cut(path, 50), ["cut short", "line"]),
        ("config.json", lambda path: path.write_text("["), ["not JSON"]),
        ("config.json", lambda path: path.write_text("[" * 100_000), ["not JSON"]),
        ("config.json", lambda path: path.write_bytes(b"\xff\xfe{}"), ["not JSON"]),
        (
            "config.json",
            lambda path: edit(path, vocab_size=VOCAB_SIZE + 1),
            [f"vocab_size is {VOCAB_SIZE + 1}", "embed_tokens", f"has {VOCAB_SIZE} rows"],
        ),
        ("config.json", lambda path: edit(path, vocab_size=VOCAB_SIZE - 1), ["rows"]),
        ("tokenizer.json", lambda path: cut(path, 300), ["cut short"]),
        ("tokenizer.json", lambda path: path.write_text("3"), ["a int", "object"]),
        ("tokenizer_config.json", lambda path: cut(path, 30), ["cut short"]),
        ("generation_config.json", lambda path: path.write_text("{"), ["cut short"]),
        ("tokenizer.model", lambda path: path.write_bytes(b""), ["empty"]),
        ("vocab.json", lambda path: path.mkdir(), ["not a file"]),
        (
            "model.safetensors.index.json",
            lambda path: path.write_text('{"weight_map": {"a": "x-1.safetensors"}}'),
            ["x-1.safetensors", "does not have"],
        ),
        ("model.safetensors.index.json", lambda path: path.write_text("{}"), ["weight_map"]),
    ],
)
def test_what_is_damaged_is_named(
    whole: Path, copy: Path, name: str, damage: Callable[[Path], Any], parts: list[str]
) -> None:
    damage(copy / name)
    message = refusal(whole, copy)
    for part in (f"{copy / name}: ", *parts):
        assert part in message, message


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_that_may_not_be_read_is_named(
    whole: Path, copy: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything, so the refusal of the system is played."""
    real = Path.open

    def refuse(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path == copy / name:
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    assert f"{copy / name}: it cannot be read (Permission denied)" in refusal(whole, copy)


def test_a_padded_vocabulary_that_the_config_names_passes(whole: Path, copy: Path) -> None:
    edit(copy / "config.json", vocab_size=VOCAB_SIZE - 1, padded_vocab_size=VOCAB_SIZE)
    check(whole, copy)
    edit(copy / "config.json", text_config={"vocab_size": VOCAB_SIZE}, padded_vocab_size=0)
    check(whole, copy)


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("adapter_config.json", b'{"r": 8,', "cut short"),
        ("adapter_config.json", b"[]", "a list"),
        ("adapter_model.safetensors", b"{}", "cut short or damaged"),
    ],
)
def test_a_damaged_adapter_is_named(
    whole: Path, tmp_path: Path, name: str, content: bytes, part: str
) -> None:
    (tmp_path / name).write_bytes(content)
    spec = MixtureSpec(policies=(Policy(name="a", model=str(tmp_path)),), base=str(whole))
    with pytest.raises(CheckpointFilesError) as caught:
        check_whole_files(spec)
    assert str(caught.value).startswith(f"policy 'a': {tmp_path / name}: ")
    assert part in str(caught.value)


def test_an_adapter_in_the_place_of_a_checkpoint_is_told(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "serve it with --adapter and --base" in refusal(whole, tmp_path)


def test_an_adapter_beside_a_config_or_a_checkpoint_is_told(whole: Path, copy: Path) -> None:
    """Trainers save the model's config beside an adapter; vLLM would read both files."""
    shutil.copy(copy / "model.safetensors", copy / "adapter_model.safetensors")
    for _ in range(2):
        message = refusal(whole, copy)
        for words in ("adapter_model.safetensors: the folder holds an adapter", "--adapter and"):
            assert words in message
        (copy / "model.safetensors").unlink(missing_ok=True)


def test_neither_torch_nor_vllm_is_needed(whole: Path) -> None:
    program = (
        "import sys; from prefmix.mixing.checkpoints.whole_files import check_whole_files\n"
        "from prefmix.mixing.spec import MixtureSpec, Policy\n"
        f"check_whole_files(MixtureSpec(policies=(Policy(name='a', model={str(whole)!r}),)))\n"
        "assert not {'torch', 'vllm', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_one_tensor_in_two_files_is_refused_unless_an_index_chooses(
    whole: Path, copy: Path
) -> None:
    shutil.copy(copy / "model.safetensors", copy / "model_old.safetensors")
    message = refusal(whole, copy)
    for words in ("model_old.safetensors: it holds ", "as model.safetensors does", "remove"):
        assert words in message
    index = {"weight_map": {"model.embed_tokens.weight": "model.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    check(whole, copy)


def in_parts(folder: Path) -> None:
    """Renames the file of parameters to the only part of a checkpoint in parts."""
    part = "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(folder / part)
    index = {"weight_map": {"lm_head.weight": part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_whole_file_beside_an_index_of_others_is_refused(whole: Path, copy: Path) -> None:
    """vLLM reads what the index names, transformers the whole file."""
    in_parts(copy)
    check(whole, copy)
    shutil.copy(whole / "model.safetensors", copy)
    message = refusal(whole, copy)
    for words in ("model.safetensors: model.safetensors.index.json names other files", "remove"):
        assert words in message


def test_a_copy_in_mistrals_format_is_refused_unless_an_index_chooses(
    whole: Path, copy: Path
) -> None:
    from safetensors.numpy import save_file

    native = copy / "consolidated.00.safetensors"
    save_file({"layers.0.attention.wq.weight": np.zeros((2, 2))}, native)
    message = refusal(whole, copy)
    assert "consolidated.00.safetensors: vLLM would read this file and transformers the" in message
    in_parts(copy)
    check(whole, copy)
    for path in copy.glob("model*"):
        path.unlink()
    check(whole, copy)
