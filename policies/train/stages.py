"""Stages of a training run that survive being killed: each is done and on disk, or not there.

A run with `--output DIR` works in `DIR.stages`. Every stage fills a folder of its own, which gets
its name once it is complete; its trainer's checkpoints lie beside it until then. Started again with
the same settings and data, a run skips what is done and resumes the rest. `DIR` appears last.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from policies.train import TrainError

MANIFEST = "manifest.json"
STAGE = "stage.json"

Make = Callable[[Path, Path], dict[str, Any]]
"""make(folder to fill, folder of checkpoints) -> facts for the manifest."""


class Stages:
    """The work folder of one run.

    Args:
      output: where the policy goes in the end.
      about: what the run is (settings, hashes of the data); another run's folder is refused.
    Raises: TrainError if `output` exists, or the work folder is of a different run.
    """

    def __init__(self, output: Path, about: dict[str, Any]) -> None:
        if output.exists():
            raise TrainError(f"{output} exists; give another --output or remove it")
        self._output = output
        self.folder = output.with_name(output.name + ".stages")
        self._about = about
        self._facts: dict[str, Any] = {}
        path = self.folder / MANIFEST
        if path.exists():
            self._check(json.loads(path.read_text(encoding="utf-8"))["about"])
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write_manifest()

    @property
    def facts(self) -> dict[str, Any]:
        """What each stage done so far reported."""
        return dict(self._facts)

    def run(self, name: str, make: Make) -> Path:
        """The folder of a stage, made now unless an earlier run completed it."""
        folder = self.folder / name
        if folder.exists():
            print(f"{name}: done before", flush=True)
        else:
            print(f"{name} ...", flush=True)
            partial = self.folder / f"{name}.partial"
            checkpoints = self.folder / f"{name}.checkpoints"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            facts = make(partial, checkpoints)
            _write_json(partial / STAGE, facts)
            os.rename(partial, folder)
            shutil.rmtree(checkpoints, ignore_errors=True)
        self._facts[name] = json.loads((folder / STAGE).read_text(encoding="utf-8"))
        self._write_manifest()
        return folder

    def publish(self, name: str, *, keep: bool) -> None:
        """Moves a stage's folder to the output; the others stay as artefacts or go."""
        folder = self.folder / name
        (folder / STAGE).unlink(missing_ok=True)
        os.rename(folder, self._output)
        if not keep:
            shutil.rmtree(self.folder)

    def _check(self, about: dict[str, Any]) -> None:
        ours = json.loads(json.dumps(self._about))
        different = [
            f"{part}.{name} was {then.get(name)!r} and is {now.get(name)!r}"
            for part, now in ours.items()
            for then in [about.get(part, {})]
            for name in sorted({*now, *then})
            if now.get(name) != then.get(name)
        ]
        if different:
            raise TrainError(
                f"{self.folder} holds an unfinished run that is another one: "
                f"{'; '.join(different)}. Remove the folder, or give another --output"
            )

    def _write_manifest(self) -> None:
        _write_json(
            self.folder / MANIFEST, {"format": 1, "about": self._about, "stages": self._facts}
        )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    aside = path.with_name(path.name + ".new")
    aside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.rename(aside, path)
