"""Offsets beyond 32 bits, in the interpreter. Each has a fork, which a wrong address may end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
NO_MEMORY = 77

CASES = [
    ("log_linear_mix", "rows"),
    ("log_linear_mix", "columns"),
    ("mixture_statistics", "rows"),
    ("mixture_statistics", "columns"),
    ("mix_lm_head", "rows"),  # its columns must lie side by side
]

SCRIPT = f"""
import json
import os
import sys
import traceback
import torch
from support.kernels.head_cases import check_heads, make_heads
from support.kernels.cases import Case, check_mixed, check_statistics, make_case
from prefmix.mixing.kernels.logits_pass_triton import log_linear_mix_triton
from prefmix.mixing.kernels.mix_lm_head_triton import mix_lm_head_triton
from prefmix.mixing.kernels.mixture_statistics import MixtureStatistics
from prefmix.mixing.kernels.mixture_statistics_triton import mixture_statistics_triton

FAR = 2**30 + 16  # elements; two of them are beyond 2**31

def check(kernel, axis):
    try:
        memory = torch.empty(2 * FAR + 1024, dtype=torch.float16)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return {NO_MEMORY}

    def spread(values, offset=0):
        strides = (FAR, 1) if axis == "rows" else (values.shape[1], FAR)
        return memory.as_strided(values.shape, strides, offset).copy_(values)

    columns, none, one = [0, 1], [0.0, 0.0], [1.0, 1.0]
    if kernel == "mix_lm_head":
        inputs = make_heads(16, 16, rows=3, vocab=3, dtype=torch.float16)
        inputs = inputs._replace(weights_NM=torch.full((3, 2), 0.5))  # rounds no states
        inputs.hidden[1], inputs.heads[1] = spread(inputs.hidden[1]), spread(inputs.heads[1], 16)
        check_heads(inputs, mix_lm_head_triton(*inputs[:3], columns, 3, one))
        return 0
    rows, vocab = (3, 507) if axis == "rows" else (2, 3)
    case = make_case(vocab, torch.float16, rows=rows, members=2)
    logits, weights_NM = [case.logits[0], spread(case.logits[1])], case.weights_NM
    case = Case(logits, weights_NM, case.tokens_N)
    if kernel == "log_linear_mix":
        check_mixed(case, log_linear_mix_triton(logits, weights_NM, columns, vocab, none, one))
    else:
        found = mixture_statistics_triton(logits, weights_NM, case.tokens_N, columns, none, one)
        check_statistics(case, MixtureStatistics(*found))
    return 0

codes = []
for case in json.loads(sys.argv[1]):
    if (child := os.fork()) == 0:
        code = 1
        try:
            code = check(*case)
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(codes))
"""


@pytest.fixture(scope="module")
def outcomes() -> tuple[list[int], str]:
    """The exit code of each case's own process, and what they wrote to stderr."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(CASES)],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return json.loads(run.stdout), run.stderr


@pytest.mark.parametrize(("kernel", "axis"), CASES)
@pytest.mark.usefixtures("interpreter")
def test_strides_may_lead_beyond_32_bits(
    kernel: str, axis: str, outcomes: tuple[list[int], str]
) -> None:
    """4 GiB of addresses, of which a few pages are touched."""
    codes, errors = outcomes
    code = codes[CASES.index((kernel, axis))]
    if code == NO_MEMORY:
        pytest.skip(f"the system gives no 4 GiB that it does not have: {errors.strip()}")
    assert code == 0, f"exit code {code}\n{errors[-2000:]}"
