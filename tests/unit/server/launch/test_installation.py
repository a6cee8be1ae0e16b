"""Installations that lack packages, or hold some that cannot be loaded: one sentence each."""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prefmix.bench.command import BENCHES
from prefmix.server.cli.main import COMMANDS
from prefmix.server.launch.installation import (
    NO_VLLM,
    InstallationError,
    explained,
    require_extra,
    require_vllm,
)
from support.architecture import ROOT
from support.installed_packages import light_installation, run_installed

DEMO = str(ROOT / "policies" / "demo" / "serve.yaml")
FIT = "pyarrow, scipy, matplotlib, tqdm and httpx are not installed: pip install 'prefmix[fit]'"
TRAIN = (
    "torch, transformers, tokenizers, safetensors, tqdm, trl, peft, accelerate and datasets are "
    "not installed: pip install 'prefmix[train]', or in a clone: make setup-train"
)
TRAIN_WORDS = ["train", "dpo", "--base", "b", "--data", "pairs.jsonl", "--output", "o"]
PAIR = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """prefmix without extras."""
    folder = tmp_path_factory.mktemp("bare")
    light_installation(folder)
    return folder


@pytest.fixture(scope="module")
def with_fit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """prefmix with the extra `fit`, for jobs on running servers."""
    folder = tmp_path_factory.mktemp("with-fit")
    light_installation(folder, "fit")
    return folder


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["serve", DEMO], NO_VLLM),
        (["fit", DEMO, "--prompts", "p", "--output", "o", "--profile", "x"], FIT),
        (["eval", DEMO, "--prompts", "p", "--reward", "a=mine:f"], FIT),
        (TRAIN_WORDS, TRAIN),
        (["bench", "kernels"], NO_VLLM),
        (["bench", "engine"], NO_VLLM),
    ],
)
def test_commands_without_their_extras_name_the_pip_command(
    words: list[str], sentence: str, bare: Path, tmp_path: Path
) -> None:
    (tmp_path / "pairs.jsonl").write_text(PAIR)
    run = run_installed(bare, ["-m", "prefmix", *words], cwd=tmp_path)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == f"prefmix: error: {sentence}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        *([command.name, "--help"] for command in COMMANDS),
        *(["bench", name, "--help"] for name in BENCHES),
        ["train", "dpo", "--help"],
        ["weights", "set", "--help"],
    ],
    ids=" ".join,
)
def test_help_needs_no_extra(words: list[str], bare: Path, tmp_path: Path) -> None:
    run = run_installed(bare, ["-m", "prefmix", *words], cwd=tmp_path)
    assert (run.returncode, run.stderr) == (0, "")


def test_wrong_usage_is_told_before_what_is_missing(bare: Path, tmp_path: Path) -> None:
    run = run_installed(bare, ["-m", "prefmix", "serve", "missing.yaml"], cwd=tmp_path)
    assert run.returncode == 2
    assert "missing.yaml" in run.stderr


def test_a_local_fit_needs_vllm_beside_its_own_extra(with_fit: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    words = ["fit", DEMO, "--prompts", "prompts.jsonl", "--output", "o.json", "--profile", "x"]
    run = run_installed(with_fit, ["-m", "prefmix", *words], cwd=tmp_path)
    assert (run.returncode, run.stderr) == (1, f"prefmix: error: {NO_VLLM}\n")


def test_an_evaluation_of_a_server_needs_no_vllm(with_fit: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "mine.py").write_text("def reward(prompts, completions):\n    return [0.0]\n")
    words = ["eval", "--server", "http://127.0.0.1:9", "--prompts", "prompts.jsonl"]
    run = run_installed(
        with_fit, ["-m", "prefmix", *words, "--reward", "a=mine:reward"], cwd=tmp_path
    )
    assert run.returncode == 1
    assert "127.0.0.1:9" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_missing_package_of_a_users_reward_stays_the_users(
    with_fit: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text("import torch\n")
    words = ["eval", DEMO, "--prompts", "p", "--reward", "a=mine:reward"]
    run = run_installed(with_fit, ["-m", "prefmix", *words], cwd=tmp_path)
    assert run.returncode == 1
    assert "cannot import the reward function 'mine:reward'" in run.stderr
    assert "No module named 'torch'" in run.stderr
    assert "pip install" not in run.stderr


def test_a_bench_s_process_says_so_too(bare: Path, tmp_path: Path) -> None:
    """The bench shows the last line of a contestant that ended early."""
    settings = '{"kind": "prefmix.bench.kernels:main"}'
    run = run_installed(bare, ["-m", "prefmix.bench.contestants.worker", settings], cwd=tmp_path)
    assert (run.returncode, run.stderr) == (1, f"{NO_VLLM}\n")


def test_the_python_api_is_imported_without_vllm_and_names_it_when_used(
    bare: Path, tmp_path: Path
) -> None:
    script = f"import prefmix; print('imported'); prefmix.Mixture(config={DEMO!r})"
    run = run_installed(bare, ["-c", script], cwd=tmp_path)
    assert (run.returncode, run.stdout) == (1, "imported\n")
    assert run.stderr.endswith(f"InstallationError: {NO_VLLM}\n")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Makes an importable package, with metadata, from its source."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name: str, source: str) -> None:
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(source)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")

    return make


def test_packages_of_another_torch_are_named_with_the_way_to_remove_them(
    package: Callable[[str, str], None],
) -> None:
    """transformers fails to import where pip installed CUDA builds beside torch's CPU build."""
    package("torchaudio", "raise OSError('Could not load this library: libtorchaudio.so')\n")
    package("torchvision", "raise RuntimeError('operator torchvision::nms does not exist')\n")
    package("reader", "import torchvision\n")
    torch = importlib.metadata.version("torch")
    sentence = (
        f"torchvision and torchaudio cannot be loaded beside torch {torch}, which stops "
        "transformers and vLLM; text models need none of them: "
        "pip uninstall --yes torchvision torchaudio"
    )
    with pytest.raises(InstallationError) as caught, explained():
        importlib.import_module("reader")
    assert str(caught.value) == sentence


def test_later_failures_of_these_packages_pass(package: Callable[[str, str], None]) -> None:
    package("torchvision", "def resize():\n    raise RuntimeError('out of memory')\n")
    module = importlib.import_module("torchvision")
    with pytest.raises(RuntimeError, match="out of memory"), explained():
        module.resize()


def test_a_missing_module_that_others_import_passes(package: Callable[[str, str], None]) -> None:
    package("theirs", "import pyarrow_of_theirs\n")
    with pytest.raises(ModuleNotFoundError, match="pyarrow_of_theirs") as caught, explained():
        importlib.import_module("theirs")
    assert not isinstance(caught.value, InstallationError)


def test_what_is_installed_is_not_complained_of() -> None:
    require_vllm()
    require_extra("fit")
