"""A run's data, and the checks of a run that need no library and so come first."""

from __future__ import annotations

from dataclasses import replace

from prefmix.mixing.output_place import why_unwritable
from prefmix.policies.data.pairs import ANSWER_FIELDS, PAIR_FIELDS, TEXT_FIELDS, Rows, read_rows
from prefmix.policies.data.sources import Source, check_there
from prefmix.policies.errors import TrainError
from prefmix.policies.train.settings import MaximumSettings, TrainSettings
from prefmix.policies.train.splitter import by_prompts
from prefmix.policies.train.trackers import check_trackers

EVALUATION = "evaluation"
"""The name of the pairs that are evaluated on and not trained on."""


def check_inputs(settings: TrainSettings) -> None:
    """Checks that the files exist, that the output can be written, and the trackers' packages.

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
    if settings.output.exists():
        raise TrainError(f"{settings.output} exists; give another --output or remove it")
    if (why := why_unwritable(settings.output, is_folder=True)) is not None:
        raise TrainError(f"--output is {settings.output}, and {why}; give another folder")


def read_data(settings: TrainSettings) -> dict[str, Rows]:
    """The checked rows of a run: `pairs` and, if there are any, EVALUATION, `sft` and `text`.

    Raises: TrainError naming the row; ImportError for a source that needs a library.
    """
    source = Source(name=str(settings.data), split=settings.split, subset=settings.subset)
    data = {"pairs": read_rows(source, PAIR_FIELDS)}
    if settings.eval_data is not None:
        source = Source(name=str(settings.eval_data), split=settings.eval_split)
        data[EVALUATION] = read_rows(source, PAIR_FIELDS)
    elif settings.eval_split is not None:
        data[EVALUATION] = read_rows(replace(source, split=settings.eval_split), PAIR_FIELDS)
    elif settings.eval_share is not None:
        data |= _held_out(data["pairs"], settings.eval_share, settings.seed)
    if isinstance(settings, MaximumSettings):
        if settings.sft_data is not None:
            data["sft"] = read_rows(settings.sft_data, ANSWER_FIELDS)
        if settings.text_data is not None:
            data["text"] = read_rows(settings.text_data, TEXT_FIELDS)
    return data


def _held_out(pairs: Rows, share: float, seed: int) -> dict[str, Rows]:
    """The pairs in two parts, all those of one prompt in the same.

    Raises: TrainError if one part is empty.
    """
    held, trained = by_prompts(pairs, share, seed=f"{seed} evaluation")
    if not held or not trained:
        raise TrainError(
            f"eval_share is {share:g}, which leaves {len(held)} of {len(pairs)} pairs to evaluate "
            f"on and {len(trained)} to train on; give another one, or more pairs"
        )
    return {"pairs": pairs.take(trained), EVALUATION: pairs.take(held)}
