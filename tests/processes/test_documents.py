"""The commands that README.md and docs/ print do what the pages say, in order, on one server.

Only the port is another one, because 8000 may be in use. What is not run here, and why, is listed
in tests/support/pages/journey.py.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.pages.commands import ROOT, words_of
from support.pages.journey import RUN, RUN_PROMPTS, named
from support.server_process import PREFMIX, ServerProcess, clean_environment

CLONE = ("policies", "examples", "docs", "README.md")


class Shell:
    """A new user's shell in a folder that looks like a fresh clone after `make setup`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in CLONE:
            (folder / name).symlink_to(ROOT / name)
        (folder / ".venv").symlink_to(PREFMIX.parents[1])
        self.environ = clean_environment()
        self.servers: dict[tuple[str, ...], ServerProcess] = {}

    def run(self, command: str) -> str:
        """Runs one command as printed; returns what it wrote to stdout."""
        words = words_of(command)
        if words[:2] == ["prefmix", "serve"]:
            return self._serve(tuple(words[2:]))
        (server,) = self.servers.values() or (None,)
        if server is not None:
            command = command.replace("http://127.0.0.1:8000", server.url)
        if words[0] == "export":
            command += "\nenv -0"
        done = subprocess.run(
            ["bash", "-euc", command],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        if words[0] == "export":
            self.environ = dict(
                entry.split("=", 1) for entry in done.stdout.split("\0") if "=" in entry
            )
        return done.stdout

    def _serve(self, words: tuple[str, ...]) -> str:
        if words not in self.servers:  # a second page may start the same server as the first
            added = {k: v for k, v in self.environ.items() if k not in os.environ}
            logs = self.folder / f"server-{len(self.servers)}"
            logs.mkdir()
            self.servers[words] = ServerProcess(logs, words, **added)
            self.servers[words].wait_ready()
        return ""

    def close(self) -> None:
        for server in self.servers.values():
            server.kill()


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.chdir(tmp_path)
    shell = Shell(tmp_path)
    yield shell
    shell.close()


def test_the_commands_run_as_printed(shell: Shell) -> None:
    said: dict[str, str] = {}
    for name in RUN:
        (block,) = named(name)
        for command in block.commands:
            said[f"{block.page}: {' '.join(words_of(command)[:3])}"] = shell.run(command)

    answer = json.loads(said["README.md: curl -s http://127.0.0.1:8000/v1/chat/completions"])
    assert answer["prefmix"]["weights"] == {
        "positive": 0,
        "concise": pytest.approx(0.4),
        "polite": pytest.approx(0.6),
        "reference": 0,
    }
    picked = said["docs/candidates.md: curl -i http://127.0.0.1:8000/v1/completions"]
    head, _, body = picked.partition("\n\n")
    assert "x-prefmix-ess: " in head
    assert json.loads(body)["choices"][0]["preference_candidates"]["num_candidates"] == 8
    changed = json.loads(said["docs/profiles.md: curl -s -X"])
    assert changed["changed"] is False, "the rollback has left the profile as it was set"

    # The fit went into the store that the server follows, and the default is the fitted profile.
    history = said["README.md: prefmix weights history"].splitlines()
    assert "terse" in history[1]
    assert "fitted" in history[1]
    assert history[1].split()[4] == "fitted", "the default"
    assert len(history) > 5
    (server,) = shell.servers.values()
    with server.client(key=None) as client:
        request = {"model": "demo", "prompt": "Review the Park Hotel.", "max_tokens": 4}
        plain = client.post("/v1/completions", json=request)
        assert plain.headers["x-prefmix-profile"] == "fitted", plain.text


def test_the_recipes_of_prompts_run_as_printed(shell: Shell) -> None:
    said = []
    for name in RUN_PROMPTS:
        for block in named(name):
            said += [shell.run(command) for command in block.commands]
    _, *answers, tables = said
    assert len(answers) == 4
    for answer in answers:
        assert len(json.loads(answer)["prefmix"]["prompt_tokens"]) >= 2
    for title in ("System prompts by weight", "Negative prompt", "A document"):
        assert title in tables
