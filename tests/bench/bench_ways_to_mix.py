"""Both ways to mix at the same weights, on policies from gentle to sharp.

    python tests/bench/bench_ways_to_mix.py --output FOLDER [--scales 0.5 1] [--speed]

The policies are the sharp demo policies, whose updates are scaled: half an update is a gentler
policy, the whole one is as trained. For each scale `prefmix eval` asks the 64 held-out
prompts, 8 answers a row, and judges both ways at uniform weights and on a grid. Differences are
mixed logits less mixed parameters. Evaluations that FOLDER has already are read again. `--speed`
times both ways in turns in one engine instead.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from prefmix.mixing.checkpoints.file_names import ADAPTER_CONFIG
from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.mixing.ways_to_mix import MIXINGS
from prefmix.policies.demo import CHECKPOINTS, EVALUATION_PROMPTS, REWARDS
from prefmix.weights.engines.local import LocalEngine
from prefmix.weights.engines.prompts import Prompt
from prefmix.weights.store.text_tables import aligned

BASE = CHECKPOINTS / "reference"
SHARP = CHECKPOINTS.with_name("sharp")
ENGINE = {"enforce_eager": True, "max_model_len": 512, "max_num_seqs": 64, "dtype": "float32"}
BATCHES, ROUNDS, TOKENS = (1, 8, 64), 9, 32


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Compare both ways to mix.")
    parser.add_argument("--output", type=Path, required=True, help="folder of the evaluations")
    parser.add_argument("--adapters", type=Path, default=SHARP, help="folder of the adapters")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.5, 1.0])
    parser.add_argument("--grid", type=int, default=2)
    parser.add_argument("--responses", type=int, default=8)
    parser.add_argument("--read", type=Path, nargs="*", default=[], help="other evaluations")
    parser.add_argument("--speed", action="store_true")
    args = parser.parse_args()
    if args.speed:
        print(aligned(_costs(args.adapters)))
        return
    rows = [HEADING]
    for path in args.read:
        rows.append(_told(path.stem, json.loads(path.read_text(encoding="utf-8"))))
    for scale in args.scales:
        path = args.output / f"scale-{scale:g}.json"
        if not path.exists():
            _evaluate(args, scale, path)
        found = json.loads(path.read_text(encoding="utf-8"))
        rows.append(_told(f"{args.adapters.name} x {scale:g}", found))
    print(aligned(rows))


def _evaluate(args: argparse.Namespace, scale: float, path: Path) -> None:
    """Runs `prefmix eval` on the adapters at a scale."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prompts = path.parent / "heldout.jsonl"
    lines = [json.dumps({"messages": _chat(text)}) for text in EVALUATION_PROMPTS]
    prompts.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="prefmix-ways-") as scratch:
        adapters = _scaled(args.adapters, scale, Path(scratch))
        subprocess.run(
            [
                *(sys.executable, "-m", "prefmix", "eval", "--base", str(BASE)),
                *(f"--adapter={name}={folder}" for name, folder in adapters.items()),
                *("--reference", f"reference={BASE}", "--prompts", str(prompts)),
                *(f"--reward={name}=prefmix.policies.demo.judges:{name}" for name in REWARDS),
                *("--grid", str(args.grid), "--responses", str(args.responses)),
                *("--max-tokens", "160", "--cache", str(path.parent / "cache")),
                *("--output", str(path), "--", "--enforce-eager", "--max-model-len", "512"),
                *("--max-num-seqs", "64", "--dtype", "float32"),
            ],
            check=True,
        )


def _chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _scaled(adapters: Path, scale: float, folder: Path) -> dict[str, Path]:
    """Copies of the adapters with their updates scaled, by name."""
    found = {}
    for name in REWARDS:
        found[name] = folder / name
        shutil.copytree(adapters / name, found[name])
        path = found[name] / ADAPTER_CONFIG
        config = json.loads(path.read_text(encoding="utf-8"))
        config["lora_alpha"] *= scale
        path.write_text(json.dumps(config), encoding="utf-8")
    return found


HEADING = [
    *("policies", "KL, answer", "KL, token", "pairs that differ", "largest reward difference"),
    *("smallest win rate, differences", "largest KL, logits", "parameters"),
]


def _told(name: str, found: dict[str, Any]) -> list[str]:
    """One line: the largest KL between two policies, and the differences of both ways; KLs of
    mixtures are means over the pairs of the largest from a policy with weight."""
    rows = {row["name"]: row for row in found["rows"]}
    members = found["members"]
    policies = [name for name in REWARDS if name in rows]
    apart = [
        (rows[one]["kl"][members.index(other)], rows[one]["tokens"])
        for one in policies
        for other in policies
        if one != other
    ]
    rewards, wins, differing, kls = [], [], 0, dict.fromkeys(MIXINGS, 0.0)
    for pair in found["both_ways"]:
        rewards += [value for value, *_ in pair["rewards"]]
        wins.append(pair["smallest_win_rate"][0])
        differing += any(low > 0 or high < 0 for _, low, high in pair["rewards"])
        weights = rows[pair["logits"]]["weights"]
        for way in MIXINGS:
            row = rows[pair[way]]
            kls[way] += max(row["kl"][members.index(name)] for name in weights)
    count = len(found["both_ways"])
    return [
        name,
        f"{max(kl for kl, _ in apart):.1f}",
        f"{max(kl / tokens for kl, tokens in apart):.2f}",
        f"{differing} of {count}",
        f"{max(rewards, key=abs):+.3f}",
        f"{min(wins):+.3f} to {max(wins):+.3f}",
        *(f"{kls[way] / count:.2f}" for way in MIXINGS),
    ]


def _costs(adapters: Path) -> Sequence[Sequence[str]]:
    """The processor time of both ways at uniform weights, in turns, by batch.

    Processor time, not time: other programs may run beside.
    """
    spec = MixtureSpec(
        policies=tuple(Policy(name=name, model=str(adapters / name)) for name in REWARDS),
        base=str(BASE),
    )
    engine = LocalEngine.start(spec, **ENGINE)
    told = [["requests", "logits over parameters", "from", "to", "parameters, ms a token"]]
    prompts = engine.tokenize([Prompt(id="1", messages=tuple(_chat(EVALUATION_PROMPTS[0])))])
    for batch in BATCHES:
        ratios, costs = [], []
        for index in range(ROUNDS + 1):
            seconds = {}
            for way in MIXINGS if index % 2 else reversed(MIXINGS):
                begin = time.process_time()
                drawn = engine.llm.generate(
                    [{"prompt_token_ids": list(prompts[0])}] * batch,
                    _sampling(spec, way, seed=index),
                    use_tqdm=False,
                )
                seconds[way] = time.process_time() - begin
                assert all(len(each.outputs[0].token_ids) == TOKENS for each in drawn)
            if index:  # the first round warms up
                ratios.append(seconds["logits"] / seconds["parameters"])
                costs.append(1e3 * seconds["parameters"] / (batch * TOKENS))
        told.append(
            [
                str(batch),
                *(f"{value:.2f}" for value in (median(ratios), min(ratios), max(ratios))),
                f"{median(costs):.2f}",
            ]
        )
    return told


def _sampling(spec: MixtureSpec, way: Any, *, seed: int) -> Any:
    from vllm import SamplingParams

    from prefmix.mixing import wire

    return SamplingParams(
        temperature=1.0,
        max_tokens=TOKENS,
        ignore_eos=True,
        seed=seed,
        extra_args=wire.to_extra_args(spec.uniform_weights, way),
    )


if __name__ == "__main__":
    main()
