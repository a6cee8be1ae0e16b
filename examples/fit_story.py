"""Fits the demo policies' weights, compares what they buy, and applies them to a running server.

    make fit-demo        (or: python -m examples.fit_story)

Both samplers on the training prompts, with a report each under .prefmix/fit-demo; then, on prompts
that no policy has seen, rewards and gains of the reference, each policy, mixtures and parameter
averages. What is drawn is kept under .prefmix/fit, so that a second run takes seconds.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import FrameType
from typing import NoReturn

from examples.comparison import (
    MAX_TOKENS,
    NUM_RESPONSES,
    Contender,
    chat_prompts,
    demo_spec,
    measure_rows,
    start_engine,
)
from examples.gains import REFERENCE, Gains, against, conclusion, gains_table, measure_gains
from examples.live_apply import apply_to_running_server
from examples.soup import write_soup
from policies.demo import CHECKPOINTS, EVALUATION_PROMPTS, REWARDS
from policies.demo.prompts import TRAINING_PROMPTS
from policies.demo.tour import TourError
from weights.fingerprint import fingerprint
from weights.fit import FitJob
from weights.fit_result import FitResult, FitSettings, Sampler
from weights.output import write_store
from weights.progress import Progress
from weights.prompts import hash_of_prompts
from weights.report import write_report
from weights.summary import summary

FOLDER = Path(".prefmix/fit-demo")
CACHE = Path(".prefmix/fit")
PROFILE = "fitted"
SAMPLERS: tuple[Sampler, ...] = ("mixture", "reference")
_LEGEND = """
gain: share of the way from the reference policy (0) to the policy that was trained for the
objective (1); min gain is the smallest of the three. soup: one model, its parameters averaged
at these weights."""


def main() -> int:
    """Tells the story; returns the exit code."""
    # Models this small leave a second thread waiting, and it waits by spinning.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Of libraries, about other libraries.
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
    fingerprints = {member.name: fingerprint(member) for member in spec.members}
    engine = cache(lambda: start_engine(spec))
    fits: dict[Sampler, FitResult] = {}
    for sampler in SAMPLERS:
        settings = FitSettings(sampler=sampler, max_tokens=MAX_TOKENS)
        print(f"Fitting on {len(prompts)} prompts with the {sampler} sampler.", flush=True)
        job = FitJob(
            spec=spec,
            prompts=prompts,
            settings=settings,
            engine=engine,
            fingerprints=fingerprints,
            cache=CACHE,
        )
        fits[sampler] = job.run()
        print(f"\n{summary(fits[sampler])}\n", flush=True)
        about = {
            "prompts": hash_of_prompts(prompts),
            "policies": fingerprints,
            "settings": asdict(settings),
        }
        path = _store_of(sampler)
        about = write_store(path, fits[sampler], spec.member_names, profile=PROFILE, about=about)
        title = f"Demo policies, {sampler} sampler"
        write_report(fits[sampler], _report_of(sampler), title=title, provenance=about)
    return fits


# --- what the weights buy --------------------------------------------------------------------


def contenders(fits: Mapping[Sampler, FitResult]) -> list[Contender]:
    """The rows of the table, in its order: a soup is named for where its weights come from."""
    uniform = dict.fromkeys(REWARDS, 1 / len(REWARDS))

    def mixture(name: str, weights: dict[str, float]) -> Contender:
        return Contender(name=name, weights=weights, shown=tuple(weights.values()))

    def soup(name: str, weights: dict[str, float]) -> Contender:
        shown = tuple(weights.values())
        return Contender(name=f"soup {name}", weights={f"soup-{name}": 1.0}, shown=shown)

    return [
        Contender(name=REFERENCE, weights={REFERENCE: 1.0}),
        *(Contender(name=name, weights={name: 1.0}) for name in REWARDS),
        mixture("uniform", uniform),
        *(mixture(f"fitted {sampler}", fits[sampler].weights) for sampler in SAMPLERS),
        soup("uniform", uniform),
        *(soup(sampler, fits[sampler].weights) for sampler in SAMPLERS),
    ]


def averages(rows: Sequence[Contender]) -> dict[str, dict[str, float]]:
    """The parameter averages that some rows ask for: member name -> policy -> share."""
    return {
        member: dict(zip(REWARDS, row.shown or (), strict=True))
        for row in rows
        for member in row.weights
        if member.startswith("soup-")
    }


def _compare(fits: Mapping[Sampler, FitResult]) -> Gains:
    rows = contenders(fits)
    prompts = chat_prompts(EVALUATION_PROMPTS)
    print(f"Asking {len(prompts)} held-out prompts, {len(rows)} rows:", flush=True)
    with tempfile.TemporaryDirectory(prefix="prefmix-soup-") as scratch:
        soups = {
            name: write_soup(
                Path(scratch) / name, {CHECKPOINTS / key: share for key, share in shares.items()}
            )
            for name, shares in averages(rows).items()
        }
        spec = demo_spec(soups)
        engine = cache(lambda: start_engine(spec))
        measured = measure_rows(
            rows, spec=spec, prompts=prompts, engine=engine, cache=CACHE, progress=Progress()
        )
    return measure_gains(measured, tuple(REWARDS))


def _told(found: Gains) -> str:
    """The table and what it shows."""
    num_responses = len(EVALUATION_PROMPTS) * NUM_RESPONSES
    parts = [f"Mean rewards of {num_responses:,} responses a row at temperature 1:\n"]
    parts.append(gains_table(found))
    parts.append(_LEGEND)
    parts += [f"\n{conclusion(found, f'fitted {sampler}')}" for sampler in SAMPLERS]
    pairs = [("uniform", "soup uniform")]
    pairs += [(f"fitted {sampler}", f"soup {sampler}") for sampler in SAMPLERS]
    what = "Smallest gain of a mixture less that of the soup at the same weights"
    parts.append(f"\n{against(found, pairs, what)}")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
