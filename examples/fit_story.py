"""Fits weights for the sharp demo policies in every way, measures what they earn, and applies them
to a server.

    make fit-demo        (or: python -m examples.fit_story)

Five fits on the training prompts become five profiles of one store under .prefmix/fit-demo, with a
report each. Then, on prompts that no policy has seen, the gains of the reference, each policy and
the mixtures are measured: of logits, of parameters, and with candidates. All responses are kept
under .prefmix/fit, so that a second run takes seconds.
"""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from examples.comparison import (
    MAX_TOKENS,
    NUM_CANDIDATES,
    NUM_RESPONSES,
    chat_prompts,
    contenders,
    demo_rewards,
    demo_spec,
    measured,
    start_engine,
    with_candidates,
)
from examples.gains import Gains, against, conclusion, gains_table, measure_gains
from examples.live_apply import apply_to_running_server
from prefmix.mixing.ways_to_mix import Mixing
from prefmix.policies.demo import EVALUATION_PROMPTS
from prefmix.policies.demo.reviews.prompts import TRAINING_PROMPTS
from prefmix.policies.demo.tour.server import TourError
from prefmix.weights.engines.content_hash import content_hashes as content_hashes_of
from prefmix.weights.engines.engine import Engine
from prefmix.weights.engines.prompts import hash_of_prompts
from prefmix.weights.evaluation import both_ways
from prefmix.weights.evaluation.verdict import verdict
from prefmix.weights.evaluation.weighting import Weighting
from prefmix.weights.fit.job import FitJob
from prefmix.weights.fit.output import write_profile
from prefmix.weights.fit.result import FitResult
from prefmix.weights.fit.sampling import FitInputs
from prefmix.weights.fit.settings import FitSettings
from prefmix.weights.fit.summary import summary
from prefmix.weights.report.fit_report import write_report
from prefmix.weights.report.reward_report import write_reward_report
from prefmix.weights.reward_fit.job import RewardFitJob
from prefmix.weights.reward_fit.result import RewardFitResult
from prefmix.weights.reward_fit.summary import summary as reward_summary
from prefmix.weights.store.text_tables import aligned

FOLDER = Path(".prefmix/fit-demo")
STORE = FOLDER / "weights.json"
CACHE = Path(".prefmix/fit")
_LEGEND = f"""
gain: share of the way from the reference policy (0) to the policy that was trained for the
objective (1). parameters: one model, its parameters mixed at these weights. candidates: answers
picked from {NUM_CANDIDATES} draws. ±: half of the 95 % interval over prompts."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to fit."""

    title: str
    settings: FitSettings
    of_rewards: bool = False
    """Makes the smallest gain large in place of the largest KL small."""


def _settings(**given: Any) -> FitSettings:
    return FitSettings(num_responses=8, round_prompts=32, max_tokens=MAX_TOKENS, **given)


METHODS: Mapping[str, Method] = {
    "minimax": Method(title="the least largest KL of the served mixture", settings=_settings()),
    "sequence": Method(
        title="the product of whole sequences, which candidates come near to",
        settings=_settings(sampler="sequence"),
    ),
    "minimax-parameters": Method(
        title="the least largest KL of the mean of the parameters",
        settings=_settings(mixing="parameters"),
    ),
    "max-min": Method(
        title="the largest smallest gain of the served mixture",
        settings=_settings(),
        of_rewards=True,
    ),
    "max-min-parameters": Method(
        title="the largest smallest gain of the mean of the parameters",
        settings=_settings(mixing="parameters"),
        of_rewards=True,
    ),
}
"""Profile -> the way to fit it."""

Fits = Mapping[str, FitResult | RewardFitResult]


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
        spec = demo_spec()
        content_hashes = content_hashes_of(spec)
        engine = cache(lambda: start_engine(spec))
        fits = _fit_all(engine, content_hashes)
        found = _compare(fits, engine, content_hashes)
        print(f"\n{_told(found)}\n")
        apply_to_running_server(STORE)
    except KeyboardInterrupt:
        print("\nfit-demo: stopped; what was drawn is kept, the next run goes on", file=sys.stderr)
        return 130
    except TourError as error:
        print(f"\nfit-demo: {error}", file=sys.stderr)
        return 1
    print(f"\nDone in {time.monotonic() - begun:.0f} s. Reports:")
    for profile in METHODS:
        print(f"  {FOLDER / profile / 'report.html'}")
    return 0


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


# --- the fits --------------------------------------------------------------------------------


def _fit_all(engine: Callable[[], Engine], content_hashes: Mapping[str, str]) -> Fits:
    """Fits in every way; prints the summaries, writes the store and the reports."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    STORE.unlink(missing_ok=True)
    prompts = chat_prompts(TRAINING_PROMPTS)
    fits: dict[str, FitResult | RewardFitResult] = {}
    for profile, method in METHODS.items():
        print(f"Fitting {profile!r}, {method.title}, on {len(prompts)} prompts.", flush=True)
        inputs = FitInputs(
            spec=demo_spec(),
            prompts=prompts,
            settings=method.settings,
            engine=engine,
            content_hashes=content_hashes,
            cache=CACHE,
        )
        about = {
            "prompts": hash_of_prompts(prompts),
            "policies": dict(content_hashes),
            "settings": asdict(method.settings),
        }
        if method.of_rewards:
            job = RewardFitJob(inputs, rewards=demo_rewards(), aim="max-min-reward")
            fits[profile] = job.run()
        else:
            fits[profile] = FitJob(inputs).run()
        _publish(profile, fits[profile], about)
    return fits


def _publish(profile: str, found: FitResult | RewardFitResult, about: dict[str, Any]) -> None:
    """Prints the summary, adds the profile to the store and writes the report."""
    mixing: Mixing = METHODS[profile].settings.mixing
    _, provenance = write_profile(
        STORE,
        found,
        demo_spec().member_names,
        profile=profile,
        about=about,
        mixing=None if mixing == "logits" else mixing,
    )
    title, folder = f"Sharp demo policies, {profile}", FOLDER / profile
    if isinstance(found, FitResult):
        print(f"\n{summary(found)}\n", flush=True)
        write_report(found, folder, title=title, provenance=provenance)
    else:
        print(f"\n{reward_summary(found)}\n", flush=True)
        write_reward_report(found, folder, title=title, provenance=provenance)


# --- what the weights buy --------------------------------------------------------------------


def mixtures(fits: Fits) -> list[Weighting]:
    """The fitted mixtures that are compared."""
    weights = {profile: found.weights for profile, found in fits.items()}
    return [
        Weighting(name="minimax", weights=weights["minimax"]),
        Weighting(
            name="minimax, parameters", weights=weights["minimax-parameters"], mixing="parameters"
        ),
        Weighting(name="sequence", weights=weights["sequence"]),
        with_candidates("sequence", weights["sequence"]),
        Weighting(name="max-min", weights=weights["max-min"]),
        Weighting(
            name="max-min, parameters", weights=weights["max-min-parameters"], mixing="parameters"
        ),
    ]


def _compare(fits: Fits, engine: Callable[[], Engine], content_hashes: Mapping[str, str]) -> Gains:
    rows = contenders(mixtures(fits))
    prompts = chat_prompts(EVALUATION_PROMPTS)
    print(f"Asking {len(prompts)} held-out prompts, {len(rows)} rows:", flush=True)
    found = measured(rows, prompts, engine=engine, content_hashes=content_hashes, cache=CACHE)
    return measure_gains(found)


PAIRS = (
    ("max-min", "uniform"),
    ("max-min, parameters", "uniform, parameters"),
    ("minimax", "uniform"),
    ("uniform", "uniform, parameters"),
    ("max-min", "max-min, parameters"),
    ("uniform, candidates", "uniform"),
    ("sequence, candidates", "sequence"),
)
"""Rows whose differences the story tells."""


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
    return "\n".join(
        [
            f"Gains, from {num_responses:,} responses a row at temperature 1:\n",
            gains_table(found),
            _LEGEND,
            f"\n{conclusion(found, 'max-min')}",
            f"\n{against(found, PAIRS, 'Differences')}",
            "\nWin rates against the reference ± half of their 95 % interval:\n",
            win_rates(found),
            f"\n{aligned(both_ways.candidate_cells(found.measured))}",
            *(f"\n{textwrap.fill(sentence, 88)}" for sentence in verdict(found.measured)),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
