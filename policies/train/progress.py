"""Progress of training: a bar on a terminal, an occasional line in a log.

The bars and dictionaries of transformers, datasets and TRL, which would fill a log, are silenced.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.utils import logging as transformers_logging

from prefmix.policies.train.stages import telling_measure

LINE_INTERVAL_S = 30.0
"""The least time between two lines without a terminal."""
_PATIENCE_S = 2.0


def quiet_libraries() -> None:
    """Silences the libraries' bars and reports of use; on a terminal, bars of long steps stay."""
    import datasets
    from huggingface_hub import constants

    # TRL's trainers report their use to the hub. The constant is read at each report, the variable
    # only when the hub's client is imported.
    if "HF_HUB_DISABLE_TELEMETRY" not in os.environ:
        constants.HF_HUB_DISABLE_TELEMETRY = True

    # TRL imports vLLM, which is not used here.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    logging.getLogger("vllm").setLevel(logging.ERROR)
    # It warns of answers to which a reward does not apply, which is the reward's own affair.
    logging.getLogger("trl.trainer.rloo_trainer").setLevel(logging.ERROR)
    # It warns if two checkpoints have the same second, and then sorts them by number.
    logging.getLogger("transformers.trainer_utils").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    if sys.stderr.isatty():
        transformers_logging.set_tqdm_hook(_patient)
    else:
        transformers_logging.disable_progress_bar()
        os.environ["TQDM_DISABLE"] = "1"  # TRL reads the variable at every bar


def _patient(make: Callable[..., Any], args: tuple[Any, ...], settings: dict[str, Any]) -> Any:
    return make(*args, **{"delay": _PATIENCE_S, "leave": False, **settings})


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silences warnings of transformers about intended steps, such as a new head."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def show_steps(trainer: Any, name: str) -> None:
    """Replaces the progress output of a trainer by `StepProgress`."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StepProgress(name))


class StepProgress(TrainerCallback):
    """Shows steps and the newest loss or reward on standard error."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._newest = ""
        self._bar: Any = None
        self._shown_at = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts at the first step of the run, or at the step where it is resumed."""
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self._name,
            unit="step",
            leave=False,
            dynamic_ncols=True,
            disable=None,  # without a terminal
        )
        self._shown_at = time.monotonic()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **_: Any
    ) -> None:
        """Remembers what the trainer logs."""
        measure = telling_measure(logs)
        if measure is not None:
            self._newest = f"{measure} {float(logs[measure]):.3g}"
            self._bar.set_postfix_str(self._newest)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Moves the bar, or writes a line if enough time has passed since the last one."""
        self._bar.update(1)
        now = time.monotonic()
        if self._bar.disable and now - self._shown_at >= LINE_INTERVAL_S:
            self._shown_at = now
            steps = f"{self._name}: step {state.global_step:,} of {state.max_steps:,}"
            print(f"{steps}, {self._newest}", file=sys.stderr, flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Removes the bar."""
        self._bar.close()
