"""Stages of a training run that survive a kill: a stage is complete on disk, or missing.

A run with `--output DIR` works in `DIR.stages`. Every stage fills a folder of its own, which gets
its final name once it is complete. Until then the trainer's checkpoints lie beside it; the stage's
report stays there. A run that is started again with the same settings and data skips complete
stages and resumes the others. `DIR` appears last.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prefmix.policies.train import TrainError

MANIFEST = "manifest.json"

Make = Callable[[Path, Path], dict[str, Any]]
"""make(folder to fill, folder of checkpoints) -> facts for the manifest."""

Tell = Callable[[str], None]
"""Receives a line for the user."""

say: Tell = partial(print, flush=True)


class Stages:
    """The work folder of one run.

    Args:
      output: folder of the finished policy.
      about: identity of the run (settings, hashes of the data); another run's folder is refused.
      tell: receives one line per stage.
    Raises: TrainError if `output` exists, or if the work folder belongs to a different run.
    """

    def __init__(self, output: Path, about: dict[str, Any], *, tell: Tell = say) -> None:
        if output.exists():
            raise TrainError(f"{output} exists; give another --output or remove it")
        self._output = output
        self.folder = output.with_name(output.name + ".stages")
        self._about = about
        self._tell = tell
        self._facts: dict[str, Any] = {}
        path = self.folder / MANIFEST
        if path.exists():
            self._check(json.loads(path.read_text(encoding="utf-8"))["about"])
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write_manifest()

    @property
    def facts(self) -> dict[str, Any]:
        """The reports of the stages done so far."""
        return dict(self._facts)

    def run(self, name: str, make: Make) -> Path:
        """The folder of a stage, which is made now unless an earlier run completed it."""
        folder = self.folder / name
        report = self.folder / f"{name}.json"
        begun = time.monotonic()
        spent = "done before"
        if not folder.exists():
            self._make(name, make, folder, report)
            spent = f"{time.monotonic() - begun:.0f} s"
        facts = json.loads(report.read_text(encoding="utf-8"))
        self._facts[name] = facts
        self._write_manifest()
        self._tell(f"{name}: {told(facts)}, {spent}")
        return folder

    def publish(self, name: str, *, keep: bool) -> None:
        """Moves a stage's folder to the output; the others are kept or removed."""
        os.rename(self.folder / name, self._output)
        if not keep:
            shutil.rmtree(self.folder)

    def _make(self, name: str, make: Make, folder: Path, report: Path) -> None:
        unfinished = self.folder / f"{name}.partial"
        checkpoints = self.folder / f"{name}.checkpoints"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            facts = make(unfinished, checkpoints)
        except BaseException:
            shutil.rmtree(unfinished)
            if not self._facts and not checkpoints.exists():
                shutil.rmtree(self.folder)  # there is nothing to resume
            raise
        _write_json(report, facts)
        os.rename(unfinished, folder)
        shutil.rmtree(checkpoints, ignore_errors=True)

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


def told(facts: Mapping[str, Any]) -> str:
    """The report of a stage as part of a line: numbers, and the course of its loss or reward."""
    parts = [
        f"{name.replace('_', ' ')} {value:.4g}"
        for name, value in facts.items()
        if isinstance(value, int | float)
    ]
    if losses := facts.get("losses"):
        parts += [f"steps {losses[-1]['step']}", told_course(losses)]
    if evaluations := facts.get("evaluations"):
        parts.append(f"held out: {told_evaluation(evaluations[-1])}")
    return ", ".join(parts)


def told_course(losses: Sequence[Mapping[str, float]]) -> str:
    """First and last value of the loss, or of a more telling measure."""
    first, last = losses[0], losses[-1]
    measure = telling_measure(first) or "loss"
    return f"{measure} {first[measure]:.3g} to {last[measure]:.3g}"


def told_evaluation(entry: Mapping[str, float]) -> str:
    """The loss on held-out pairs, and the share of them that is ordered rightly."""
    told = [f"loss {entry['eval_loss']:.3g}"]
    names = ("eval_rewards/accuracies", "eval_accuracy")
    told += [f"accuracy {entry[name]:.3g}" for name in names if name in entry][:1]
    return ", ".join(told)


def telling_measure(logs: Mapping[str, Any]) -> str | None:
    """The most telling measure of a log entry.

    Online training tells the reward, maximum-preference the mean preference, others the loss.
    """
    return next((name for name in ("reward", "preference", "loss") if name in logs), None)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    aside = path.with_name(path.name + ".new")
    aside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.rename(aside, path)
