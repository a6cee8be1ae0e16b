"""A step on a GPU waits for nothing: no code in its path reads a value back from the device."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2] / "mixing"
FOLDERS = ("batch", "kernels", "models", "prompts")
FILES = ("engine/sampler_hooks.py",)

WAITING = {"item", "tolist", "nonzero", "cpu", "numpy", "synchronize", "masked_select", "unique"}
"""Methods that read values back, or wait for what the device is doing."""
COPYING = {"tensor", "as_tensor"}
"""Functions of torch that copy from the host to a device, and wait for the copy."""

CPU_ONLY = {
    "models/attention_metadata.py",
    "models/begun_blocks.py",
    "models/skipping.py",
    "prompts/step_heads.py",
}

ALLOWED = {
    # On a CPU only.
    "models/base.py": {"MixtureModel.__init__", "members_with_weight"},
    "batch/broken_rows.py": {"find_broken_rows"},
    "kernels/log_linear_mix.py": {"log_linear_mix_torch"},
    "engine/sampler_hooks.py": {"_with_broken_rows.wrapped"},
    # Of arrays that the host has.
    "batch/joined_requests_v2.py": {"JoinedRequests.fill"},
    "batch/pairs.py": {"pairs_of", "views_of_engine"},
    "batch/heads_v2.py": {
        "SlotHeads.__init__.filled",
        "SlotHeads.write",
        "SlotHeads._seen_by",
        "SlotHeads.views",
    },
    # At the start, between steps, or when somebody asks for figures.
    "models/adapter_linears.py": {"AdapterLinearMethod.read"},
    "batch/weights_v2.py": {"SlotWeights.__init__"},
    "batch/statistics.py": {
        "MixtureStatisticsCollector.take_sample",
        "MixtureStatisticsCollector.take_request",
    },
    "kernels/tuning.py": {"_milliseconds"},
}
"""Functions that may wait, by file: `find_broken_rows` and others ask for the device first."""


def waits(source: str) -> Iterator[tuple[str, int, str]]:
    """(function, line, call) of all calls that may wait."""

    def visit(node: ast.AST, place: str) -> Iterator[tuple[str, int, str]]:
        for child in ast.iter_child_nodes(node):
            name = place
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{place}.{child.name}".lstrip(".")
            if isinstance(child, ast.Call) and isinstance(child.func, ast.Attribute):
                called, keywords = child.func.attr, {each.arg for each in child.keywords}
                of_torch = isinstance(child.func.value, ast.Name) and child.func.value.id == "torch"
                if called in WAITING or (of_torch and called in COPYING and "device" in keywords):
                    yield place, child.lineno, called
            yield from visit(child, name)

    return visit(ast.parse(source), "")


def test_the_path_of_a_step_reads_nothing_back() -> None:
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]
    found, used = [], set()
    for path in (*paths, *(ROOT / file for file in FILES)):
        name = path.relative_to(ROOT).as_posix()
        if name in CPU_ONLY:
            continue
        for function, line, call in waits(path.read_text(encoding="utf-8")):
            if function in ALLOWED.get(name, ()):
                used.add((name, function))
            else:
                found.append(f"{name}:{line}: {call} in {function}")
    assert not found, f"waits for the device, or must be allowed with a reason: {found}"
    allowed = {(name, function) for name, functions in ALLOWED.items() for function in functions}
    assert allowed == used, "allowed, and not there any more"


def test_waits_are_found_wherever_they_stand() -> None:
    source = """
class A:
    def step(self, x):
        def inner():
            return x.nonzero()[:, 0]
        return torch.tensor([1], device=x.device), x.sum().item(), torch.tensor([1])
"""
    assert list(waits(source)) == [
        ("A.step.inner", 5, "nonzero"),
        ("A.step", 6, "tensor"),
        ("A.step", 6, "item"),
    ]
