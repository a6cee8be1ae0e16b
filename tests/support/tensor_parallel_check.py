"""Serves mixtures on two CPU ranks, one after the other, and prints the worst errors of each.

Full checkpoints are served twice: each with its own LM head, and with one product over all heads,
which is a GPU's way. One process for all mixtures, and the ranks are forks of it: one import.

python tests/support/tensor_parallel_check.py '[{"spec": ..., "folders": [...]}, ...]'

Prints one JSON object a mixture: {"worst error": nats, "one product": nats}; of one that has
"is_refused" instead of folders {"refusal": the ranks' sentences}.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any


def mix_plain_heads(worker: Any) -> bool:
    """Makes each rank compute one product over all heads; False if the heads do not allow it."""
    from prefmix.mixing.models.lm_heads import plain_heads

    model = worker.model_runner.model
    if not hasattr(type(model), "plain_heads"):
        return False
    model.plain_heads = plain_heads(list(model.members.values()), model.dtype)
    return model.plain_heads is not None


def main() -> None:
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "0|1"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    tests = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(tests), str(tests.parent)]
    from support.preloaded_server import fork_always

    fork_always()
    for mixture in json.loads(sys.argv[1]):
        if mixture.get("is_refused"):
            print(json.dumps({"refusal": refusal(mixture["spec"])}), flush=True)
            continue
        print(json.dumps(errors(mixture["spec"], list(map(Path, mixture["folders"])))), flush=True)


def started(spec_dict: dict[str, Any]) -> tuple[Any, Any]:
    """The mixture, and its engine of two ranks."""
    from vllm import LLM

    from prefmix.mixing.spec import MixtureSpec, hf_overrides

    spec = MixtureSpec.from_dict(spec_dict)
    llm = LLM(
        model=spec.checkpoints[0].model,
        hf_overrides=hf_overrides(spec),
        dtype="float32",
        tensor_parallel_size=2,
        enforce_eager=True,
        max_model_len=256,
        max_num_batched_tokens=64,
        max_num_seqs=16,
        kv_cache_memory_bytes=2**26,
    )
    return spec, llm


def refusal(spec_dict: dict[str, Any]) -> str:
    """The sentences by which the ranks refuse a mixture; vLLM keeps them for its log."""
    sys.stdout.flush()
    with tempfile.TemporaryFile("w+") as log:
        stdout = os.dup(1)
        os.dup2(log.fileno(), 1)
        try:
            started(spec_dict)[1].llm_engine.engine_core.shutdown()
        except Exception:  # of the class Exception itself, by which vLLM says that ranks failed
            pass
        finally:
            sys.stdout.flush()
            os.dup2(stdout, 1)
        log.seek(0)
        return "".join(line for line in log if "MemberLoadError: " in line)


def errors(spec_dict: dict[str, Any], folders: list[Path]) -> dict[str, float]:
    """The worst errors against full checkpoints, by the way that logits are made."""
    from support.checkpoints.tiny_policies import VOCAB_SIZE
    from support.exactness import Oracle, both_ways, generate, random_jobs

    spec, llm = started(spec_dict)
    drawn = random_jobs(8, num_members=len(folders), vocab_size=VOCAB_SIZE, seed=0)
    jobs = [replace(job, max_tokens=min(job.max_tokens, 12)) for job in drawn]
    if spec.base is not None:
        jobs = both_ways(jobs)
    oracle = Oracle(folders)
    found = {"worst error": oracle.worst_error(jobs, generate(llm, jobs))}
    if all(llm.collective_rpc(mix_plain_heads)):
        found["one product"] = oracle.worst_error(jobs, generate(llm, jobs))
    llm.llm_engine.engine_core.shutdown()
    return found


if __name__ == "__main__":
    main()
