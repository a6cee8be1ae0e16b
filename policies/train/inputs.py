"""Checks of a run's inputs that need no library, so that a mistyped name is an error at once."""

from __future__ import annotations

from prefmix.policies.data.sources import Source, check_there
from prefmix.policies.train.settings import MaximumSettings, TrainSettings
from prefmix.policies.train.trackers import check_trackers


def check_inputs(settings: TrainSettings) -> None:
    """Checks that the files exist, and the packages of `--report-to`.

    Raises: SettingsError, TrainError.
    """
    check_trackers(settings)
    for path in (settings.data, settings.eval_data):
        if path is not None:
            check_there(Source(name=str(path)))
    if isinstance(settings, MaximumSettings):
        for path in (settings.sft_data, settings.text_data):
            if path is not None:
                check_there(Source(name=str(path), is_local=True))
