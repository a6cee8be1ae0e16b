"""The programs that a run's losses are also sent to: `--report-to`, which TRL's trainers take."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from prefmix.policies.errors import SettingsError
from prefmix.policies.train.settings import TrainSettings

_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX")}
"""Packages of which one suffices, where they are not named like the program."""

_TENSORBOARD_FOLDER = "TENSORBOARD_LOGGING_DIR"
"""transformers' variable."""


def check_trackers(settings: TrainSettings) -> None:
    """Checks that the packages are there, before anything is read.

    Raises: SettingsError naming the missing package.
    """
    for name in settings.trackers:
        packages = _PACKAGES.get(name, (name,))
        if not any(importlib.util.find_spec(package) for package in packages):
            raise SettingsError(
                f"report_to names {name!r}, but the package {packages[0]} is not installed; "
                f"pip install {packages[0]}, or leave report_to out"
            )


def tracker_arguments(settings: TrainSettings, stage: str) -> dict[str, Any]:
    """The arguments of a trainer that decide where it logs to.

    Args: stage: name of the trainer's stage, which the run's name ends with.
    """
    if not settings.trackers:
        return {"report_to": "none"}
    # Beside the output: the folder of checkpoints is removed at the end.
    folder = settings.output.with_name(settings.output.name + ".logs")
    os.environ.setdefault(_TENSORBOARD_FOLDER, str(folder))
    return {"report_to": settings.trackers, "run_name": f"{settings.output.name} {stage}"}
