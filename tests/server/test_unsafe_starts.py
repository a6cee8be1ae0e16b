"""Starts that must not be: vLLM's unsafe switches, and pickled policies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from support.preloaded_server import Preloaded
from support.server_process import free_port, run_prefmix


def refused(*words: str, code: int, preloaded: Preloaded | None = None, **environ: str) -> str:
    run = run_prefmix(*words, preloaded=preloaded, **environ)
    assert (run.returncode, run.stdout) == (code, ""), run.stderr
    assert "Traceback" not in run.stderr
    return run.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "name",
    [
        "VLLM_SERVER_DEV_MODE",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
        "VLLM_ALLOW_INSECURE_SERIALIZATION",
    ],
)
def test_vllms_unsafe_switches_end_the_start(policies: list[Path], name: str) -> None:
    line = refused("serve", f"--policy=a={policies[0]}", code=2, **{name: "1"})
    assert f"{name} is set: " in line


class Payload:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("command", ["serve", "fit", "bench"])
def test_a_pickled_policy_is_refused_and_not_opened(
    policies: list[Path], tmp_path: Path, command: str, preloaded: Preloaded
) -> None:
    evil, ran = tmp_path / "evil", tmp_path / "ran"
    shutil.copytree(policies[0], evil)
    (evil / "model.safetensors").unlink()
    torch.save(Payload(ran), evil / "pytorch_model.bin")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "hi"}) + "\n")
    models = [f"--policy=one={policies[0]}", f"--policy=evil={evil}"]
    words = {
        "serve": ["serve", *models, "--port", str(free_port())],
        "fit": ["fit", *models, "--prompts", str(prompts), "--output", str(tmp_path / "w.json")],
        "bench": ["bench", "engine", *models, "--policies", "2"],
    }[command]
    line = refused(*words, code=2 if command == "fit" else 1, preloaded=preloaded)
    for part in ("policy 'evil'", str(evil), "pytorch_model.bin", "--allow-unsafe-weights"):
        assert part in line
    assert not ran.exists()


@pytest.mark.parametrize("command", ["serve", "fit"])
def test_a_plugin_in_the_configuration_is_refused_and_not_run(
    policies: list[Path], tmp_path: Path, command: str, preloaded: Preloaded
) -> None:
    plugin, ran = tmp_path / "plugin.py", tmp_path / "ran"
    plugin.write_text(f"from pathlib import Path\nPath({str(ran)!r}).touch()\n")
    config = tmp_path / "serve.yaml"
    config.write_text(
        f"policies: {{a: {policies[0]}, b: {policies[1]}}}\n"
        f"engine: {{tool_parser_plugin: {plugin}}}\n"
    )
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "hi"}) + "\n")
    words = {
        "serve": ["--port", str(free_port())],
        "fit": ["--prompts", str(prompts), "--output", str(tmp_path / "w.json")],
    }[command]
    line = refused(command, str(config), *words, code=2, preloaded=preloaded)
    assert "--tool-parser-plugin imports and runs the code that it names" in line
    assert "--allow-unsafe-engine-flags" in line
    assert not ran.exists()
