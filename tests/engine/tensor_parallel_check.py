"""Serves a mixture on two CPU ranks and prints the worst error against full checkpoints.

python tests/engine/tensor_parallel_check.py SPEC_JSON FOLDER FOLDER ...
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "0|1"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    tests = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(tests), str(tests.parent)]
    from exactness import Oracle, generate, random_jobs
    from tiny_policies import VOCAB_SIZE
    from vllm import LLM

    from mixing.spec import MixtureSpec, hf_overrides

    spec = MixtureSpec.from_dict(json.loads(sys.argv[1]))
    folders = [Path(argument) for argument in sys.argv[2:]]
    llm = LLM(
        model=spec.checkpoints[0].model,
        hf_overrides=hf_overrides(spec),
        dtype="float32",
        tensor_parallel_size=2,
        enforce_eager=True,
        max_model_len=256,
        max_num_batched_tokens=64,
        max_num_seqs=16,
    )
    jobs = random_jobs(12, num_members=len(folders), vocab_size=VOCAB_SIZE, seed=0)
    print("worst error:", Oracle(folders).worst_error(jobs, generate(llm, jobs)))


if __name__ == "__main__":
    main()
