"""The kernels' bench prints its figures, and times no kernel with wrong results."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

import pytest
import torch

from prefmix.bench import kernel_comparisons, kernels
from prefmix.bench.kernel_comparisons import KERNELS, SLACK, Size, errors
from prefmix.server.config.errors import CommandError

SMALL = ["--rows", "1", "5", "--vocab", "507", "--members", "2", "--hidden", "16", "--rounds", "2"]


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bench sets torch's threads; copying a quarter of a GiB says nothing here."""
    monkeypatch.setattr(kernels, "copy_bandwidth", lambda device, *, rounds: 1e10)
    monkeypatch.setattr(kernels, "MAX_COPIES", 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_kernel_errs_no_more_than_eager_torch(
    dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kernels.main([*SMALL, "--dtype", dtype]) == 0
    out = capsys.readouterr().out
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert [(line["kernel"], line["rows"]) for line in lines] == [
        (name, rows) for name in KERNELS for rows in (1, 5)
    ]
    for line in lines:
        assert 0 <= line["error"] <= line["eager_error"] + SLACK
        assert line["eager_us"]["low"] > 0
        assert line["eager_over_ours"]["median"] > 0
    assert torch.cuda.is_available() or "no GPU" in out


def test_compiled_torch_takes_part_when_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled = []

    def compile_lightly(function: Callable[..., object], **options: object) -> object:
        compiled.append(function.__name__)
        return function

    monkeypatch.setattr(torch, "compile", compile_lightly)
    monkeypatch.setattr(
        kernel_comparisons, "_once_compiled", cache(kernel_comparisons._once_compiled.__wrapped__)
    )
    assert kernels.main([*SMALL, "--compiled"]) == 0
    out = capsys.readouterr().out
    assert compiled == ["eager_mix", "eager_statistics", "eager_head"]
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert all(line["compiled_over_ours"]["low"] > 0 for line in lines)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("row", [0, 2, 4])
def test_what_errs_is_not_timed(name: str, row: int) -> None:
    size = Size(5, 507, 2, 16, torch.float32, torch.device("cpu"))
    ways = KERNELS[name].make(size)
    error, eager_error = errors(name, ways, size)
    assert error <= eager_error + SLACK

    def wrong() -> tuple[torch.Tensor, ...]:
        results = ways.fallback()
        results = (results,) if isinstance(results, torch.Tensor) else results
        results[0][row] += 1e-3
        return results

    with pytest.raises(CommandError, match=r"result 0 errs by 0\.001 .*No speed is reported"):
        errors(name, ways._replace(fallback=wrong), size)


def test_a_wrong_fallback_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    fallback = kernel_comparisons.log_linear_mix_torch
    monkeypatch.setattr(
        kernel_comparisons, "log_linear_mix_torch", lambda *inputs: fallback(*inputs).half().float()
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CommandError, match="log_linear_mix"):
        kernels.main([*SMALL, "--kernel", "log_linear_mix"])
