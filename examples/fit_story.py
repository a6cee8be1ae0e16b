"""Fits weights for the demo policies, measures what they earn, and applies them to a server.

    make fit-demo        (or: python -m examples.fit_story)

Both samplers fit on the training prompts, with a report each under .prefmix/fit-demo. Then, on
prompts that no policy has seen, the rewards and gains of the reference, each policy, mixtures and
parameter averages are measured. All responses are kept under .prefmix/fit, so that a second run
takes seconds.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import textwrap
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import FrameType
from typing import NoReturn

from examples.comparison import (
    MAX_TOKENS,
    NUM_RESPONSES,
    chat_prompts,
    contenders,
    demo_spec,
    measured,
    start_engine,
)
from examples.gains import Gains, against, conclusion, gains_table, measure_gains
from examples.live_apply import apply_to_running_server
from prefmix.policies.demo import EVALUATION_PROMPTS, REWARDS
from prefmix.policies.demo.reviews.prompts import TRAINING_PROMPTS
from prefmix.policies.demo.tour.server import TourError
from prefmix.weights.engines.content_hash import content_hashes as content_hashes_of
from prefmix.weights.engines.prompts import hash_of_prompts
from prefmix.weights.evaluation.verdict import verdict
from prefmix.weights.fit.job import FitJob
from prefmix.weights.fit.output import write_profile
from prefmix.weights.fit.result import FitResult
from prefmix.weights.fit.sampling import FitInputs
from prefmix.weights.fit.settings import FitSettings, Sampler
from prefmix.weights.fit.summary import summary
from prefmix.weights.report.fit_report import write_report
from prefmix.weights.store.text_tables import aligned

FOLDER = Path(".prefmix/fit-demo")
CACHE = Path(".prefmix/fit")
PROFILE = "fitted"
SAMPLERS: tuple[Sampler, ...] = ("mixture", "reference")
_LEGEND = """
gain: share of the way from the reference policy (0) to the policy that was trained for the
objective (1); min gain is the smallest of the three. soup: one model, its parameters averaged
at these weights."""


def main() -> int:
    """Runs the demo; returns the exit code."""
    # For models this small a second thread would only spin while it waits.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Libraries warn about other libraries.
    warnings.filterwarnings("ignore", category=FutureWarning)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    begun = time.monotonic()
    try:
        fits = _fit_both()
        found = _compare(fits)
        print(f"\n{_told(found)}\n")
        apply_to_running_server(_store_of("mixture"), profile=PROFILE)
    except KeyboardInterrupt:
        print("\nfit-demo: stopped; what was drawn is kept, the next run goes on", file=sys.stderr)
        return 130
    except TourError as error:
        print(f"\nfit-demo: {error}", file=sys.stderr)
        return 1
    print(f"\nDone in {time.monotonic() - begun:.0f} s. Reports:")
    for sampler in SAMPLERS:
        print(f"  {_report_of(sampler) / 'report.html'}")
    return 0


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _store_of(sampler: Sampler) -> Path:
    return FOLDER / f"{sampler}.json"


def _report_of(sampler: Sampler) -> Path:
    return FOLDER / f"{sampler}-report"


# --- the fits --------------------------------------------------------------------------------


def _fit_both() -> dict[Sampler, FitResult]:
    """Fits with both samplers; prints the summaries, writes stores and reports."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    spec = demo_spec()
    prompts = chat_prompts(TRAINING_PROMPTS)
    content_hashes = content_hashes_of(spec)
    engine = cache(lambda: start_engine(spec))
    fits: dict[Sampler, FitResult] = {}
    for sampler in SAMPLERS:
        settings = FitSettings(sampler=sampler, max_tokens=MAX_TOKENS)
        print(f"Fitting on {len(prompts)} prompts with the {sampler} sampler.", flush=True)
        inputs = FitInputs(
            spec=spec,
            prompts=prompts,
            settings=settings,
            engine=engine,
            content_hashes=content_hashes,
            cache=CACHE,
        )
        fits[sampler] = FitJob(inputs).run()
        print(f"\n{summary(fits[sampler])}\n", flush=True)
        about = {
            "prompts": hash_of_prompts(prompts),
            "policies": content_hashes,
            "settings": asdict(settings),
        }
        path = _store_of(sampler)
        _, about = write_profile(
            path, fits[sampler], spec.member_names, profile=PROFILE, about=about, force=True
        )
        title = f"Demo policies, {sampler} sampler"
        write_report(fits[sampler], _report_of(sampler), title=title, provenance=about)
    return fits


# --- what the weights buy --------------------------------------------------------------------


def mixtures(fits: Mapping[Sampler, FitResult]) -> dict[str, dict[str, float]]:
    """The mixtures that are compared; the name of a soup tells the origin of its weights."""
    uniform = dict.fromkeys(REWARDS, 1 / len(REWARDS))
    return {"uniform": uniform} | {f"fitted {s}": fits[s].weights for s in SAMPLERS}


def _compare(fits: Mapping[Sampler, FitResult]) -> Gains:
    rows = contenders(mixtures(fits))
    prompts = chat_prompts(EVALUATION_PROMPTS)
    print(f"Asking {len(prompts)} held-out prompts, {len(rows)} rows:", flush=True)
    with tempfile.TemporaryDirectory(prefix="prefmix-soup-") as scratch:
        found = measured(rows, prompts, engine=start_engine, cache=CACHE, scratch=Path(scratch))
    return measure_gains(found)


def win_rates(found: Gains) -> str:
    """Win rates against the reference and their minimum, in the form of the paper's table."""
    num_objectives = len(found.measured.objectives)
    return aligned(
        [
            [name, *cells[num_objectives : 2 * num_objectives + 1]]
            for name, *cells in found.measured.cells
        ]
    )


def _told(found: Gains) -> str:
    """The table of gains, and sentences that interpret it."""
    num_responses = len(EVALUATION_PROMPTS) * NUM_RESPONSES
    parts = [f"Mean rewards of {num_responses:,} responses a row at temperature 1:\n"]
    parts.append(gains_table(found))
    parts.append(_LEGEND)
    parts += [f"\n{conclusion(found, f'fitted {sampler}')}" for sampler in SAMPLERS]
    pairs = [("uniform", "soup uniform")]
    pairs += [(f"fitted {sampler}", f"soup {sampler}") for sampler in SAMPLERS]
    what = "Smallest gain of a mixture less that of the soup at the same weights"
    parts.append(f"\n{against(found, pairs, what)}")
    parts.append("\nWin rates against the reference ± half of their 95 % interval:\n")
    parts.append(win_rates(found))
    parts += [f"\n{textwrap.fill(sentence, 88)}" for sentence in verdict(found.measured)]
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
