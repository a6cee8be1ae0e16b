"""The summary of a fit to rewards for a terminal; it fits on one screen."""

from __future__ import annotations

import textwrap

from prefmix.weights.fit.summary import COLUMNS, short
from prefmix.weights.reward_fit.result import RewardFitResult
from prefmix.weights.store.text_tables import aligned

_MAX_FRONT = 4
"""Points of the front that are shown, the answer among them; the report has all."""
_MAX_COLUMNS = 5


def summary(result: RewardFitResult) -> str:
    """Objective, weights, gains, the bound, the front passed and the verdict, as aligned text."""
    parts = [
        textwrap.fill(f"Fitted: {what_was_fitted(result)}", COLUMNS, subsequent_indent="  "),
        _policies(result),
        _objectives(result),
        aligned([[name, *told] for name, told in aim_numbers(result)], num_left=3),
        _front(result),
        textwrap.fill(f"Verdict: {result.verdict}", COLUMNS, subsequent_indent="  "),
    ]
    return "\n\n".join(part for part in parts if part)


def what_was_fitted(result: RewardFitResult) -> str:
    """The objective in plain words."""
    if result.aim == "max-min-reward":
        what = "the smallest gain over the rewards"
    elif result.aim == "mean":
        what = "the mean gain over the rewards"
    else:
        pairs = zip(result.objectives, result.importance_O, strict=True)
        what = "the mean gain, " + ", ".join(f"{name} {share:.3g}" for name, share in pairs)
    served = "mixture" if result.mixing == "logits" else "mean of the policies' parameters"
    return f"{what}, of the served {served} on samples of its own"


def aim_name(result: RewardFitResult) -> str:
    """The name of what was made large."""
    return "Smallest gain" if result.aim == "max-min-reward" else "Mean gain"


def aim_numbers(result: RewardFitResult) -> list[tuple[str, tuple[str, str]]]:
    """The measurements of the aim: name, value and interval of each."""
    found = result.measured
    rows = []
    for name, value, (low, high) in (
        (aim_name(result), found.aim, found.aim_interval),
        ("Could rise by", found.rise, found.rise_interval),
    ):
        rows.append((name, (f"{value:.3f}", f"95 %: {low:.3f} to {high:.3f}")))
    fresh, length = f"{found.num_responses:,} fresh responses", f"{found.mean_tokens:.1f}"
    rows.append(("Measured on", (fresh, f"{length} tokens each")))
    return rows


def _policies(result: RewardFitResult) -> str:
    heading = ["policy", "weight", "deployed KL"]
    if len(result.objectives) <= _MAX_COLUMNS:
        heading += [f"{short(name, 10)} alone" for name in result.objectives]
    rows = []
    for name, weight in result.weights.items():
        row = [short(name), f"{weight:.3f}", f"{result.measured.kl[name]:.2f}"]
        if len(result.objectives) <= _MAX_COLUMNS:
            alone_O = result.alone_RO[result.members.index(name)]
            row += [f"{gain:+.2f}" for gain in alone_O]
        rows.append(row)
    return aligned([heading, *rows])


def _objectives(result: RewardFitResult) -> str:
    found = result.measured
    heading = ["reward", "gain", "95 % interval", "0 is", "1 is", "best alone"]
    if found.multipliers is not None:
        heading.insert(3, "binds")
    rows = []
    for o, name in enumerate(result.objectives):
        low, high = found.gain_interval[name]
        row = [short(name), f"{found.gain[name]:+.3f}", f"{low:+.3f} to {high:+.3f}"]
        if found.multipliers is not None:
            row.append(f"{found.multipliers[name]:.2f}")
        row += [f"{result.scales.zero_O[o]:.3g}", f"{result.scales.one_O[o]:.3g}"]
        rows.append([*row, short(result.scales.best_of_O[o], 15)])
    return aligned([heading, *rows])


def _front(result: RewardFitResult) -> str:
    """The Pareto front that the fit passed, its last points."""
    if max(len(result.names), len(result.objectives)) > _MAX_COLUMNS:
        return ""
    rows = front_rows(result)[-_MAX_FRONT:]
    heading = ["", *(f"w {short(name, 8)}" for name in result.names)]
    heading += [short(name, 10) for name in result.objectives]
    return f"The front that the fit passed (gains):\n{aligned([heading, *rows])}"


def front_rows(result: RewardFitResult) -> list[list[str]]:
    """Name, weights and gains of the points that no other point of the fit beats in all gains."""
    rows = []
    for index in result.front:
        is_answer = index == len(result.gains_TO)
        gains = list(result.measured.gain.values()) if is_answer else result.gains_TO[index]
        name = "answer" if is_answer else f"round {index + 1}"
        rows.append(
            [
                name,
                *(f"{weight:.3f}" for weight in result.path_TK[index]),
                *(f"{gain:+.3f}" for gain in gains),
            ]
        )
    return rows
