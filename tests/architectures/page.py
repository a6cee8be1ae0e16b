"""Writes docs/architectures.md from the lines of the results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from architectures.candidates import TOLERANCE_NATS

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
RESULTS = Path(__file__).parent / "results.jsonl"

_HEAD = """\
# Architectures

`make test-architectures` has written this page. The command takes every text-generation
architecture that both vLLM {vllm} and transformers {transformers} have, makes tiny checkpoints of
it with random parameters, and serves them on a CPU in float32 in both layouts: two full
checkpoints, and a shared trunk with two adapters of every linear layer. Requests of different
weights are prefilled in chunks and decoded together. The log-probability of each token is compared
with the mixture of the members in transformers, in which adapters are merged into the base.

- A figure means exact: it is the largest difference of a token's log-probability in nats, at most
  {tolerance:.0e}.
- *Plain vLLM* is vLLM without a mixture, on the first checkpoint. Where it differs from
  transformers by more than that, or transformers cannot run the model, a mixture that differs too
  is compared with plain vLLM on the same files; such figures are in italics.
- Latent attention (DeepSeek) is tried with `--attention-backend CPU_MLA`, which knows float32, and
  without vLLM's kernel for rotary embeddings on a CPU, which is wrong for it.
- *Refused* means that the start ends with the numbered reason. The last column has kinds of linear
  layers that are refused if an adapter changes them; without them, the figure holds.

{counts}
"""

_TABLE = """
| architecture | class in vLLM | plain vLLM | full checkpoints | shared trunk | without |
|---|---|---:|---:|---:|---|
"""


def read_results() -> list[dict[str, Any]]:
    """The lines of the results, one for each architecture."""
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text().splitlines()]


def render(lines: Sequence[Mapping[str, Any]]) -> str:
    """The page. Args: lines: of the results, in the order of the table."""
    served = [line for line in lines if "full" in line]
    wrong = [line["architecture"] for line in served if "wrong" in _verdicts(line)]
    assert not wrong, f"served wrongly: {', '.join(wrong)}"
    exact = sum(_verdicts(line) == ["exact", "exact"] for line in served)
    one = sum(_verdicts(line).count("exact") == 1 for line in served)
    counts = (
        f"{len(lines)} architectures and forms of one: {exact} are exact in both layouts, {one} in "
        f"one of them, {len(served) - exact - one} are refused in both; "
        f"{len(lines) - len(served)} cannot be tried here."
    )
    reasons: dict[str, int] = {}
    rows = "".join(_row(line, reasons) for line in served)
    parts = [
        _HEAD.format(
            vllm=_version(lines, "vllm"),
            transformers=_version(lines, "transformers"),
            tolerance=TOLERANCE_NATS,
            counts=counts,
        ),
        _TABLE,
        rows,
        "\n## Why they are refused\n\n" if reasons else "",
        "".join(f"{number}. {reason}\n" for reason, number in reasons.items()),
        "\n## Not tried\n\n| architecture | reason |\n|---|---|\n",
        "".join(
            f"| {line['architecture']} | {_cell(_why_not(line))} |\n"
            for line in lines
            if line not in served
        ),
    ]
    return "".join(parts)


def _verdicts(line: Mapping[str, Any]) -> list[str]:
    return [line[layout]["verdict"] for layout in ("full", "trunk")]


def _row(line: Mapping[str, Any], reasons: dict[str, int]) -> str:
    plain = "-" if line["plain"] is None else f"{line['plain']:.0e}"
    left_out = line["trunk"].get("left_out", {})
    kinds = ", ".join(
        f"`{kind.rpartition('.N.')[2]}`{_note(why, reasons)}" for kind, why in left_out.items()
    )
    cells = [
        line["architecture"],
        line["served_as"],
        plain,
        _layout(line["full"], reasons),
        _layout(line["trunk"], reasons),
        kinds if line["trunk"]["verdict"] == "exact" else "",
    ]
    return f"| {' | '.join(cells)} |\n"


def _layout(found: Mapping[str, Any], reasons: dict[str, int]) -> str:
    if found["verdict"] != "exact":
        return f"{found['verdict']}{_note(found['why'], reasons)}"
    if "nats_from_vllm" in found:
        return f"*{found['nats_from_vllm']:.0e}*"
    return f"{found['nats']:.0e}"


def _note(why: str, reasons: dict[str, int]) -> str:
    """A number that leads to the reason; alike reasons have one."""
    reason = _general(why)
    return f" ({reasons.setdefault(reason, len(reasons) + 1)})"


def _general(why: str) -> str:
    """A refusal without the names that only the trial has."""
    why = re.sub(r"^policy '\w+':? ", "", why)
    return re.sub(r"\.\d+\.", ".N.", why)


def _why_not(line: Mapping[str, Any]) -> str:
    if "untried" in line:
        return "not tried yet"
    if "not_run_by_vllm" in line:
        return f"plain vLLM does not run it on a CPU: {line['not_run_by_vllm']}"
    return f"no tiny checkpoint: {line['unbuilt']}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _version(lines: Iterable[Mapping[str, Any]], package: str) -> str:
    return " and ".join(sorted({line["versions"][package] for line in lines if "versions" in line}))
