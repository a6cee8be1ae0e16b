"""The checks that `prefmix fit` and `prefmix eval` make before their engine starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefmix.server.cli.batch_engine import checked_content_hashes
from prefmix.server.config.serve_config import ServeConfig
from support.checkpoints.tiny_policies import build_tokenizer, save_policy


def test_differences_of_the_policies_are_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    folders = [
        save_policy(tmp_path / "one", seed=0, layers=1),
        save_policy(tmp_path / "two", seed=1, layers=1, tokenizer=tokenizer),
    ]
    config = ServeConfig.model_validate(
        {"policies": {folder.name: str(folder) for folder in folders}, "defaults_from": "two"}
    )
    hashes = checked_content_hashes(config, config.spec())
    assert all(each.endswith(", defaults from two") for each in hashes.values())
    tokenizers, vocabulary = capsys.readouterr().err.splitlines()
    assert tokenizers.startswith("warning: policies 'two' and 'one' have different tokenizers")
    assert "that of 'two' is used" in tokenizers
    assert vocabulary == (
        "warning: vocabulary: 320 token ids are common to all policies; 1 that only some have "
        "(320 '<pad>') are never drawn"
    )
    assert checked_content_hashes(config, config.spec(), quiet=True) == hashes
    assert capsys.readouterr().err == ""
