"""The server's counters and log agree with what its clients saw.

A client that hung up cannot know whether its answer was finished, so the log alone tells the fate
of its request. Such a request has at most one line in the log, every other request exactly one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from resilience.checks.ledger import Ledger
from resilience.harness.demo_server import Metrics, by_label, total
from resilience.harness.traffic import Outcome, Traffic

_OUTCOME = {200: "ok", 400: "rejected", 404: "rejected"}


def accounts_of(
    traffic: Traffic,
    ledger: Ledger,
    *,
    before: Metrics,
    after: Metrics,
    log: list[dict[str, Any]],
) -> dict[str, Any]:
    """Checks counters and log of a run; returns their totals. Raises: AssertionError."""
    lines = lines_by_id(log, traffic)
    counted = difference(
        by_label(before, "prefmix_requests_total", "profile", "outcome"),
        by_label(after, "prefmix_requests_total", "profile", "outcome"),
    )
    logged = Counter((line["profile"], line["outcome"]) for line in lines.values())
    assert counted == dict(logged), f"counted {counted}, logged {logged}"
    changes = difference(
        by_label(before, "prefmix_weights_changes_total", "result"),
        by_label(after, "prefmix_weights_changes_total", "result"),
    )
    assert changes == {(name,): count for name, count in ledger.results.items()}, changes
    reloads = difference(
        by_label(before, "prefmix_weights_reloads_total", "trigger", "result"),
        by_label(after, "prefmix_weights_reloads_total", "trigger", "result"),
    )
    assert reloads.get(("watch", "ok"), 0) == ledger.num_swaps, reloads
    assert total(after, "prefmix_weights_version") == max(ledger.versions)
    return {
        "logged": len(lines),
        "counted": int(sum(counted.values())),
        **engine_accounts(traffic, lines, before=before, after=after),
    }


def lines_by_id(log: list[dict[str, Any]], traffic: Traffic) -> dict[str, dict[str, Any]]:
    """The log's line of each request, checked against what its client saw."""
    sent = {outcome.id: outcome for outcome in traffic.outcomes}
    lines: dict[str, dict[str, Any]] = {}
    for line in log:
        assert line["request_id"] in sent, f"nobody sent {line}"
        assert line["request_id"] not in lines, f"two lines for one request: {line}"
        lines[line["request_id"]] = line
    for outcome in traffic.outcomes:
        line = lines.get(outcome.id)
        if outcome.ending == "gone":
            ways = (
                "cancelled",
                "ok",
                *(("rejected",) if outcome.shape.expects == "either" else ()),
            )
            assert line is None or line["outcome"] in ways, line
        else:
            assert line is not None, f"no line for {outcome}"
            seen = (outcome.status, _OUTCOME[outcome.status or 0], outcome.version)
            logged = (line["status"], line["outcome"], line["weights_version"])
            assert seen == logged, f"{outcome} but {line}"
            assert outcome.profile == (line["profile"] if line["profile"] != "none" else "")
    return lines


def engine_accounts(
    traffic: Traffic, lines: Mapping[str, Any], *, before: Metrics, after: Metrics
) -> dict[str, Any]:
    """Checks that vLLM counted each choice that a client saw once, any other at most once."""
    finished = difference(
        by_label(before, "vllm:request_success_total", "finished_reason"),
        by_label(after, "vllm:request_success_total", "finished_reason"),
    )
    whole = [outcome for outcome in traffic.outcomes if outcome.ending == "whole"]
    seen = sum(len(outcome.finish_reasons) for outcome in whole)
    unseen = sum(outcome.shape.num_choices for outcome in traffic.outcomes if _is_unseen(outcome))
    ended = sum(count for (reason,), count in finished.items() if reason != "abort")
    assert seen <= ended <= seen + unseen, f"{finished}: {seen} seen, {unseen} perhaps"
    assert sum(finished.values()) <= seen + unseen, finished
    return {
        "choices_seen": seen,
        "choices_finished": int(ended),
        "choices_aborted": int(finished.get(("abort",), 0)),
        "lines_of_the_gone": sum(
            outcome.id in lines for outcome in traffic.outcomes if _is_unseen(outcome)
        ),
    }


def difference(
    before: Mapping[tuple[str, ...], float], after: Mapping[tuple[str, ...], float]
) -> dict[tuple[str, ...], float]:
    """The increases of the counters that rose. Raises: AssertionError if one has fallen."""
    found = {key: value - before.get(key, 0) for key, value in after.items()}
    assert min(found.values(), default=0) >= 0, "a counter has gone down"
    return {key: value for key, value in found.items() if value}


def _is_unseen(outcome: Outcome) -> bool:
    return outcome.ending == "gone"
