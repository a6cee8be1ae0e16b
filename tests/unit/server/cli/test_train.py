"""`prefmix train`: flags, file and errors; nothing here trains."""

from pathlib import Path
from typing import Any

import pytest

from prefmix.server.cli.main import main
from prefmix.server.cli.train import _settings, add_arguments
from prefmix.server.launch.installation import InstallationError

REQUIRED = ["--base", "b", "--data", "d.jsonl", "--output", "o"]


def _parse(*words: str) -> Any:
    import argparse

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return _settings(parser.parse_args(words))


def test_flags_override_the_file(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("base: org/model\ndata: pairs.jsonl\nlearning_rate: 1e-4\nlora_rank: 8\n")
    settings = _parse(
        "dpo", "--config", str(config), "--output", "o", "--lora-rank", "4", "--merge"
    )
    assert settings.to_dict() | {"base": "org/model", "output": "o"} == settings.to_dict()
    assert settings.data == tmp_path / "pairs.jsonl"
    assert (settings.learning_rate, settings.lora_rank, settings.merge) == (1e-4, 4, True)


def test_each_method_has_its_own_flags() -> None:
    words = ["maximum-preference", *REQUIRED, "--scale", "0.2", "--sft-weight", "0"]
    assert _parse(*words).scale == 0.2
    assert _parse("mixed-preference", *REQUIRED, "--quantile", "0.3").quantile == 0.3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dpo", *REQUIRED, "--scale", "1"], "unknown flag '--scale'"),
        (["dpo", *REQUIRED, "--steps", "many"], "invalid int value: 'many'"),
        (["dpo", "--base", "b"], "dpo needs data, output"),
        (["dpo", *REQUIRED, "--", "--x"], "takes nothing after '--'"),
        (["dpo", "--config", "absent.yaml"], "absent.yaml does not exist"),
        (["sft"], "invalid choice: 'sft'"),
    ],
)
def test_wrong_usage_is_one_sentence(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words]) == 2
    assert message in capsys.readouterr().err


def test_no_file_allows_unsafe_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("allow_unsafe_weights: true\n")
    assert main(["train", "dpo", "--config", str(config), *REQUIRED]) == 2
    assert "run.yaml: allow_unsafe_weights cannot be set in a file" in capsys.readouterr().err


def test_unknown_key_of_the_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("lora_rnk: 8\n")
    assert main(["train", "dpo", "--config", str(config), *REQUIRED]) == 2
    assert "unknown setting 'lora_rnk' (did you mean 'lora_rank'?)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "./pairs"], "no file or folder {here}/pairs"),
        (["--data", "pairs"], "no file or folder pairs"),
        (["--data", "data/pairs.jsonl"], "no file or folder data/pairs.jsonl"),
        (
            ["--data", "there.jsonl", "--eval-data", "gone.parquet"],
            "no file or folder gone.parquet",
        ),
        (["--data", "there.jsonl", "--report-to", "trackio"], "package trackio is not installed"),
    ],
)
def test_missing_inputs_are_found_before_anything_is_imported(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.jsonl").write_text("")
    monkeypatch.setattr("prefmix.server.cli.train.require_extra", lambda extra: pytest.fail(extra))
    assert main(["train", "dpo", "--base", "b", "--output", "o", *words]) in (1, 2)
    assert message.format(here=tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--output", "/proc/policy"],
            "--output is /proc/policy, and nothing can be made in /proc",
        ),
        (["--output", "there.jsonl/x"], "nothing can be made in {here}/there.jsonl"),
        (["--output", "there.jsonl"], "there.jsonl exists; give another --output"),
    ],
)
def test_an_output_that_cannot_be_written_is_found_before_the_work(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.jsonl").write_text("")
    monkeypatch.setattr("prefmix.server.cli.train.require_extra", lambda extra: pytest.fail(extra))
    assert main(["train", "dpo", "--base", "b", "--data", "there.jsonl", *words]) == 1
    error = capsys.readouterr().err
    assert message.format(here=tmp_path) in error
    assert len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there.jsonl"]


@pytest.mark.parametrize(
    ("row", "code", "message"),
    [
        ('{"prompt": "a", "chosen": "b"}', 1, "pairs.jsonl line 1 has no 'rejected'"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c"}', 1, "pip install 'prefmix[train]'"),
    ],
)
def test_wrong_data_is_told_before_missing_packages(
    row: str,
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def missing(extra: str) -> None:
        raise InstallationError(f"trl is not installed: pip install 'prefmix[{extra}]'")

    monkeypatch.setattr("prefmix.server.cli.train.require_extra", missing)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text(row + "\n")
    words = ["--base", "b", "--output", "o", "--data", "pairs.jsonl"]
    assert main(["train", "dpo", *words]) == code
    assert message in capsys.readouterr().err


def test_a_long_list_of_settings_is_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("colour: red\n")
    assert main(["train", "dpo", "--config", str(config), *REQUIRED]) == 2
    error = capsys.readouterr().err
    assert error.endswith("unknown setting 'colour'; 'prefmix train dpo --help' lists them\n")
