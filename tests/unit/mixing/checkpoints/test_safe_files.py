"""Only safetensors are loaded: other files of a checkpoint are named before anything reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefmix.mixing.checkpoints.safe_files import (
    CheckpointFilesError,
    check_safe_files,
    unsafe_file,
)
from prefmix.mixing.spec import MixtureSpec, Policy


def folder(root: Path, *names: str) -> Path:
    root.mkdir(exist_ok=True)
    for name in names:
        (root / name).write_bytes(b"")
    return root


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin",
        "pytorch_model-00001-of-00002.bin",
        "model.pt",
        "consolidated.00.pth",
        "model.pickle",
        "model.pkl",
        "model.ckpt",
    ],
)
def test_a_file_that_would_be_unpickled_is_named_with_its_policy(tmp_path: Path, name: str) -> None:
    safe = folder(tmp_path / "safe", "config.json", "model.safetensors")
    unsafe = folder(tmp_path / "unsafe", "config.json", name, "training_args.bin")
    policies = (Policy(name="a", model=str(safe)), Policy(name="b", model=str(unsafe)))
    with pytest.raises(CheckpointFilesError) as caught:
        check_safe_files(MixtureSpec(policies=policies))
    for part in ("policy 'b'", str(unsafe), name, "--allow-unsafe-weights", "save_pretrained"):
        assert part in str(caught.value)


def test_the_base_of_a_trunk_and_the_reference_are_looked_at(tmp_path: Path) -> None:
    safe = folder(tmp_path / "safe", "model.safetensors")
    unsafe = folder(tmp_path / "unsafe", "pytorch_model.bin")
    policies = (Policy(name="a", model=str(safe)),)
    with pytest.raises(CheckpointFilesError, match="policy 'base'"):
        check_safe_files(MixtureSpec(policies=policies, base=str(unsafe)))
    reference = Policy(name="start", model=str(unsafe))
    with pytest.raises(CheckpointFilesError, match="policy 'start'"):
        check_safe_files(MixtureSpec(policies=policies, reference=reference))


def test_what_nobody_reads_does_no_harm(tmp_path: Path) -> None:
    both = folder(tmp_path / "both", "model.safetensors", "pytorch_model.bin")
    assert unsafe_file(str(both)) is None
    rest = folder(tmp_path / "rest", "training_args.bin", "optimizer.pt", "rng_state.pth")
    assert unsafe_file(str(rest)) is None
    assert unsafe_file("no-such-organisation/no-such-model") is None
    assert unsafe_file("no hub id") is None


def test_a_folder_without_parameters_is_named_with_its_policy(tmp_path: Path) -> None:
    empty = folder(tmp_path / "empty", "config.json", "tokenizer.json", "training_args.bin")
    policies = (Policy(name="a", model=str(empty)),)
    with pytest.raises(CheckpointFilesError, match=r"policy 'a'.*empty' has no parameters"):
        check_safe_files(MixtureSpec(policies=policies))
    check_safe_files(MixtureSpec(policies=(Policy(name="a", model="not/here"),)))
