"""The summary of a fit for a terminal: weights, distances of the policies, and the verdict."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import pairwise

from prefmix.weights.fit.result import MIXTURE, PARAMETERS, FitResult
from prefmix.weights.fit.sequence_level.certificate import Certificate
from prefmix.weights.store.text_tables import aligned

COLUMNS = 80
"""Longest line."""

_MAX_NAME, _SHORT_NAME = 24, 15
_MAX_SWEEP_ROWS = 4
"""Last rows of the m-sweep that are shown; the report has all."""
_MAX_SWEEP_POLICIES = 5
"""Most policies whose weights fit beside the m-sweep; with more, it shows the largest move."""


def summary(result: FitResult) -> str:
    """The objective, the weights, the certificate and the verdict, as aligned text."""
    parts = [
        _wrapped(f"Fitted: {what_was_fitted(result)}"),
        _policies(result),
        _wrapped(floor_note(result)),
        _deployed(result),
    ]
    if result.certificate is not None:
        parts += [_certificate(result)]
        parts.append(_m_sweep(result.certificate))
    parts.append(_wrapped(f"Verdict: {result.verdict}"))
    return "\n\n".join(part for part in parts if part)


def what_was_fitted(result: FitResult) -> str:
    """The objective in plain words."""
    meaning = {
        MIXTURE: "the served mixture, on samples of its own",
        PARAMETERS: (
            "the served mean of the policies' parameters, on samples of its own; the gradient by "
            "finite differences over the weights"
        ),
        "reference (sequence level)": (
            "the product of whole sequences, on samples of the reference policy; "
            "the served mixture normalises every token and differs from it"
        ),
        "sequence (sequence level)": (
            "the product of whole sequences, on samples of the served mixture at equal weights; "
            "the served mixture normalises every token and differs from it"
        ),
        "rewards": "the policies that the rewards define, as a product of whole sequences",
        "fixed importances": "nothing; the weights are the importances that were given",
    }
    return f"{result.fitted}: {meaning[result.fitted]}"


def is_fitted(result: FitResult) -> bool:
    """True if the weights were fitted, false if they were given."""
    return result.fitted != "fixed importances"


def distance_name(result: FitResult) -> str:
    """The name of a certificate's `kl`, which belongs to the product of whole sequences."""
    return "KL to its policy" if result.in_reward_form else "sequence KL"


def floor_note(result: FitResult) -> str:
    """A sentence on the policies that a floor holds up; empty if there are none."""
    if not result.at_floor:
        return ""
    names = ", ".join(map(short, result.at_floor))
    return f"At the floor of {result.min_weight:g}, and free to be nearer than the rest: {names}"


def short(name: str, limit: int = _MAX_NAME) -> str:
    """The name, cut to `limit` characters."""
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def _policies(result: FitResult) -> str:
    """One line a policy: its weight, and the distance of the mixture from it."""
    heading = ["reward" if result.in_reward_form else "policy", "weight"]
    is_wide = result.certificate is not None and result.deployed is not None
    limit = _SHORT_NAME if is_wide else _MAX_NAME
    rows = [[short(name, limit), f"{weight:.3f}"] for name, weight in result.weights.items()]
    error = None if result.certificate is None else result.certificate.weight_error
    if error is not None:
        heading.append("95 %")
        for row, name in zip(rows, result.names, strict=True):
            row.append(half_width(error[name]))
    if result.deployed is not None:
        heading += ["deployed KL", "95 % interval"]
        for row, name in zip(rows, result.names, strict=True):
            low, high = result.deployed.kl_interval[name]
            row += [f"{result.deployed.kl[name]:.2f}", f"{low:.2f} to {high:.2f}"]
        if result.deployed.multipliers is not None:
            heading.append("binds")
            for row, name in zip(rows, result.names, strict=True):
                row.append(f"{result.deployed.multipliers[name]:.2f}")
    if result.certificate is not None:
        heading.append(distance_name(result))
        for row, name in zip(rows, result.names, strict=True):
            row.append(f"{result.certificate.kl[name]:.2f}")
    return aligned([heading, *rows])


def _deployed(result: FitResult) -> str:
    deployed = result.deployed
    if deployed is None:
        return "Deployed KLs: not measured, there was no engine to draw from."
    rows = [[name, *told] for name, told in deployed_numbers(result)]
    return aligned(rows, num_left=3)


def deployed_numbers(result: FitResult) -> list[tuple[str, tuple[str, str]]]:
    """The measurements of the served mixture: name, value and interval of each."""
    deployed = result.deployed
    assert deployed is not None
    rows = [("Largest KL", _told(deployed.largest, deployed.largest_interval))]
    if deployed.fall is not None and deployed.fall_interval is not None:
        rows.append(("Could fall by", _told(deployed.fall, deployed.fall_interval)))
    elif is_fitted(result):
        rows.append(("Deployed gap", _told(deployed.gap, deployed.gap_interval)))
    fresh, length = f"{deployed.num_responses:,} fresh responses", f"{deployed.mean_tokens:.1f}"
    rows.append(("Measured on", (fresh, f"{length} tokens each")))
    return rows


def half_width(error: float) -> str:
    """Half of a weight's 95 % interval; a weight at an edge has none."""
    return f"± {1.96 * error:.3f}" if error else "at an edge"


def _told(value: float, interval: tuple[float, float]) -> tuple[str, str]:
    low, high = interval
    return f"{value:.3f} nats", f"95 %: {low:.3f} to {high:.3f}"


def _certificate(result: FitResult) -> str:
    found = result.certificate
    assert found is not None
    gap = "Held-out gap" if is_fitted(result) else "Sequence gap"
    rows = [
        ["Objective F", f"{found.objective:.3f} nats", "0 for each policy alone"],
        [gap, *_told(found.gap, found.gap_interval)],
        ["ESS a prompt", f"{found.ess:.1f} responses", f"{found.ess_fraction:.0%} of those drawn"],
    ]
    if found.ess_by_length:
        shares = " ".join(f"{row['ess_fraction']:.0%}" for row in found.ess_by_length)
        rows.append(["ESS by length", shares, "from short responses to long ones"])
    if is_fitted(result):
        rows += [
            [
                "Correction",
                f"{found.correction:.3f}",
                "of a weight, for the number of responses"
                + ("" if result.is_corrected else "; not made"),
            ],
            ["Descent spread", f"{found.seed_spread:.3f}", "of a weight, by starting point alone"],
        ]
    return aligned(rows, num_left=3)


def _m_sweep(found: Certificate) -> str:
    """The fits with fewer responses a prompt; weights that the last rows share are not biased."""
    if not found.m_sweep:
        return ""
    sweep = found.m_sweep[-_MAX_SWEEP_ROWS:]
    rows = [[str(row["responses"]), f"{row['objective']:.3f}"] for row in sweep]
    heading = ["responses", "F"]
    names = list(found.kl)
    if len(names) <= _MAX_SWEEP_POLICIES:
        heading += [short(name, 9) for name in names]
        for cells, row in zip(rows, sweep, strict=True):
            cells += [f"{row['weights'][name]:.3f}" for name in names]
    else:
        heading.append("largest move of a weight")
        for cells, moved in zip(rows, sweep_moves(found)[-len(rows) :], strict=True):
            cells.append("-" if moved is None else f"{moved:.3f}")
    table = aligned([heading, *rows], num_left=0)
    return f"The fit from fewer responses a prompt (before the correction):\n{table}"


def sweep_moves(found: Certificate) -> Sequence[float | None]:
    """The largest move of a weight from one row of the m-sweep to the next; first None."""
    weights = [row["weights"] for row in found.m_sweep]
    moves = [
        max(abs(after[name] - before[name]) for name in after)
        for before, after in pairwise(weights)
    ]
    return [None, *moves]


def _wrapped(text: str) -> str:
    return textwrap.fill(text, COLUMNS, subsequent_indent="  ", break_on_hyphens=False)
