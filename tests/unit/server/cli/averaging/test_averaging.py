"""`prefmix average` and `prefmix export`: their weights, their output, and what they refuse."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402

from prefmix.server.cli.main import main  # noqa: E402
from support.checkpoints.tiny_adapters import save_adapter  # noqa: E402
from support.checkpoints.tiny_policies import save_policy  # noqa: E402
from support.pages.commands import ROOT, words_of  # noqa: E402
from support.pages.journey import named  # noqa: E402

pytestmark = pytest.mark.usefixtures("vllm")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that a command sets before it imports vLLM."""
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_LOGGING_LEVEL", "VLLM_NO_USAGE_STATS"):
        monkeypatch.setenv(name, "ERROR" if name.endswith("LEVEL") else "1")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of two full checkpoints and a reference, with a profile."""
    folder = tmp_path_factory.mktemp("full")
    for seed, name in enumerate(("a", "b", "start")):
        save_policy(folder / name, seed=seed, layers=1)
    (folder / "serve.yaml").write_text(
        "policies: {a: ./a, b: ./b}\nreference: {start: ./start}\n"
        "profiles: {mostly: {a: 3, b: 1}}\n"
    )
    return folder


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of a base with two adapters, which is also the reference."""
    folder = tmp_path_factory.mktemp("trunk")
    base = save_policy(folder / "base", seed=0, layers=1)
    save_adapter(folder / "a", base, seed=1, rank=6, targets=["q_proj", "up_proj"])
    save_adapter(folder / "b", base, seed=2, rank=5, targets=["q_proj"])
    (folder / "serve.yaml").write_text(
        "base: ./base\nadapters: {a: ./a, b: ./b}\nreference: {start: ./base}\n"
    )
    return folder


def _tensor(folder: Path, name: str = "model.layers.0.mlp.up_proj.weight") -> Any:
    return load_file(folder / "model.safetensors")[name].double()


def _refusal(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> str:
    assert main(list(words)) == code
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    return sentence


def test_average_at_a_profiles_weights(
    full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert (
        main(["average", str(full / "serve.yaml"), "--profile", "mostly", "--output", str(out)])
        == 0
    )
    expected = 0.75 * _tensor(full / "a") + 0.25 * _tensor(full / "b")
    assert (_tensor(out) - expected).abs().max() < 1e-6
    told = capsys.readouterr().out
    assert "average  a 0.75, b 0.25" in told
    assert f"vllm serve {out}" in told
    record = json.loads((out / "average.json").read_text())
    assert record["weights"] == {"a": 0.75, "b": 0.25}
    assert record["policies"]["b"]["model"] == str(full / "b")


def test_the_command_of_the_page_runs_in_a_clone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = named(("docs/averages.md", ".venv/bin/prefmix average"))
    (command,) = block.commands
    (tmp_path / "policies").symlink_to(ROOT / "policies")
    monkeypatch.chdir(tmp_path)
    assert main(words_of(command)[1:]) == 0
    assert "concise 0.4, polite 0.6" in capsys.readouterr().out
    record = json.loads((tmp_path / "averaged" / "average.json").read_text())
    assert sum(record["weights"].values()) == pytest.approx(1)


def test_affine_weights_leave_the_rest_to_the_reference(full: Path, tmp_path: Path) -> None:
    words = [
        "--weight-space",
        "affine",
        "--weights",
        "a=1.5,b=-1",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(["average", str(full / "serve.yaml"), *words]) == 0
    parts = zip((1.5, -1.0, 0.5), ("a", "b", "start"), strict=True)
    expected = sum(weight * _tensor(full / name) for weight, name in parts)
    assert (_tensor(tmp_path / "out") - expected).abs().max() < 1e-6


def test_profiles_of_a_store_are_found(full: Path, tmp_path: Path) -> None:
    store = tmp_path / "weights.json"
    content = {"format": 1, "version": 1, "policies": ["a", "b", "start"], "default_profile": "new"}
    content["profiles"] = {"new": {"weights": {"b": 1.0}}}
    store.write_text(json.dumps(content))
    words = ["--weights-store", str(store), "--profile", "new", "--output", str(tmp_path / "out")]
    assert main(["average", str(full / "serve.yaml"), *words]) == 0
    assert torch.equal(_tensor(tmp_path / "out"), _tensor(full / "b"))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--profile", "gone"], 2, "there is no profile 'gone'; allowed: mostly"),
        (["--weights", "a"], 2, "expected NAME=NUMBER"),
        (["--weights", "a=1,a=2"], 2, "names 'a' twice"),
        (["--weights", "c=1"], 2, "unknown policy 'c'; this mixture has: a, b, start"),
        (["--weights", "a=-1,b=2"], 2, "is -1, negative"),
        (["--weights", "a=nan"], 2, "expected a finite number"),
        ([], 2, "one of the arguments --profile --weights is required"),
        (["--profile", "mostly", "--weights", "a=1"], 2, "not allowed with"),
        (["--weights", "a=1", "--", "--dtype", "half"], 2, "takes nothing after '--'"),
        (["--weights", "a=1", "--weights-store", "gone.json", "--profile", "x"], 2, "not allowed"),
    ],
)
def test_wrong_usage_is_one_sentence(
    full: Path, tmp_path: Path, words: list[str], code: int, message: str, capsys: Any
) -> None:
    output = ["--output", str(tmp_path / "out")]
    assert message in _refusal(capsys, code, "average", str(full / "serve.yaml"), *output, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "number", "code"), [("average", "TERM", 143), ("export", "HUP", 129)]
)
def test_a_signal_leaves_nothing_unfinished(
    command: str,
    number: str,
    code: int,
    full: Path,
    trunk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def asked_to_end(tensors: dict[str, Any], path: Path, **_: Any) -> None:
        assert [each.name for each in tmp_path.iterdir()] == ["out.partial"]
        signal.raise_signal(signal.Signals[f"SIG{number}"])

    monkeypatch.setattr("safetensors.torch.save_file", asked_to_end)
    config = (full if command == "average" else trunk) / "serve.yaml"
    words = [command, str(config), "--weights", "a=1,b=1", "--output", str(tmp_path / "out")]
    assert main(words) == code
    assert list(tmp_path.iterdir()) == []


def test_each_command_names_the_other(
    full: Path, trunk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--weights", "a=1", "--output", str(tmp_path / "out")]
    assert "'prefmix export'" in _refusal(capsys, 2, "average", str(trunk / "serve.yaml"), *words)
    assert "'prefmix average'" in _refusal(capsys, 2, "export", str(full / "serve.yaml"), *words)


def test_exported_adapter_says_how_vllm_takes_it(
    trunk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(trunk / "serve.yaml"), "--weights", "a=1,b=1", "--output"]
    assert main([*words, str(tmp_path / "exact")]) == 0
    told = capsys.readouterr().out
    assert "error    none" in told
    assert "--max-lora-rank 16 --lora-modules exact=" in told
    assert main([*words, str(tmp_path / "cut"), "--rank", "4"]) == 0
    told = capsys.readouterr().out
    record = json.loads((tmp_path / "cut" / "average.json").read_text())
    errors = record["relative_errors"]
    assert set(errors) == {"model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"}
    assert f"error    at most {max(errors.values()):.3g} of an update's" in told
    rows = [line for line in told.splitlines() if line.strip().startswith("model.layers.")]
    assert [row.split()[0] for row in rows] == sorted(errors, key=lambda each: -errors[each])
    assert len({len(row) for row in rows}) == 1, "the numbers are flush right"
    size = (tmp_path / "cut" / "adapter_model.safetensors").stat().st_size
    assert 0.5 < float(told.split("rank 4, ")[1].split(" kB")[0]) * 1e3 / size <= 1
    assert "--max-lora-rank 8 " in told
    assert record["rank"] == 4


def test_merged_export_and_the_reference_alone(
    trunk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(trunk / "serve.yaml")
    out = tmp_path / "merged"
    assert main(["export", config, "--weights", "start=1", "--merge", "--output", str(out)]) == 0
    assert torch.equal(_tensor(out), _tensor(trunk / "base"))
    words = ["--weights", "start=1", "--output", str(tmp_path / "none")]
    assert "only the reference has weight" in _refusal(capsys, 1, "export", config, *words)
    words = ["--weights", "a=1", "--merge", "--rank", "2", "--output", str(tmp_path / "none")]
    assert "not allowed with" in _refusal(capsys, 2, "export", config, *words)
    assert not (tmp_path / "none").exists()


def test_output_is_checked_before_anything_is_read(
    full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["average", str(full / "serve.yaml"), "--weights", "a=1", "--output"]
    (tmp_path / "notes").write_text("")
    assert "exists; give another" in _refusal(capsys, 1, *words, str(tmp_path))
    assert "not written by prefmix" in _refusal(capsys, 1, *words, str(tmp_path), "--force")
    assert "holds the policy" in _refusal(capsys, 1, *words, str(full), "--force")
    assert main([*words, str(tmp_path / "out")]) == 0
    assert main([*words, str(tmp_path / "out"), "--force"]) == 0
    assert sorted(os.listdir(tmp_path)) == ["notes", "out"]
