"""`prefmix eval`: its flags, and from them a table of what a running server's mixtures earn."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from server.api_keys import client_key
from server.exits import CommandError

if TYPE_CHECKING:
    from weights.evaluation import Reward, Weighting
    from weights.prompts import Prompt
    from weights.remote import RemoteEngine

EPILOG = """\
Rows: the reference, each policy, every profile, and a grid over the simplex. Win rates are against
the first row. The prompts file is that of 'prefmix fit'; use prompts that nothing was trained on.
Example: prefmix eval --server http://127.0.0.1:8000 --prompts heldout.jsonl \\
    --reward helpful=rewards:helpful --reward harmless=./reward-model --grid 4"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `prefmix eval`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add = parser.add_argument
    add(
        "--server",
        metavar="URL",
        required=True,
        help="a prefmix server; its key in PREFMIX_API_KEY or _FILE",
    )
    add("--prompts", type=Path, required=True, help="JSONL file of prompts")
    add(
        "--reward",
        action="append",
        required=True,
        metavar="NAME=REWARD",
        help="module:function in TRL's form, or a reward model's checkpoint; once an objective",
    )
    add(
        "--allow-unsafe-weights",
        action="store_true",
        help="also load .bin and .pt reward models, which can run any code",
    )
    add("--grid", type=_positive, metavar="N", help="also mixtures in steps of 1 / N")
    add("--responses", type=_positive, default=8, help="answers a prompt and row; default 8")
    add("--max-tokens", type=_positive, default=128, help="longest answer; default 128")
    add("--seed", type=int, default=0, help="of drawing answers; default 0")
    add("--output", type=Path, help="JSON file for the numbers")


def run(args: argparse.Namespace, passthrough: Sequence[str]) -> int:
    """Measures and prints the table; returns the exit code."""
    from policies.train import TrainError
    from weights.evaluation import evaluate
    from weights.prompts import PromptsError, read_prompts
    from weights.remote import RemoteEngine, RemoteError

    if passthrough:
        raise CommandError("'prefmix eval' takes nothing after '--'", exit_code=2)
    try:
        rewards = _rewards(args.reward, allow_unsafe_weights=args.allow_unsafe_weights)
        prompts = read_prompts(args.prompts)
        engine = RemoteEngine(args.server, api_key=client_key())
        found = evaluate(
            engine,
            prompts,
            _rows(engine, args.grid),
            rewards,
            engine.spec.member_names,
            num_responses=args.responses,
            max_tokens=args.max_tokens,
            seed=args.seed,
        )
    except (TrainError, PromptsError, RemoteError) as error:
        raise CommandError(str(error)) from None
    print(f"{found.table()}\n\n{found.verdict()}")
    if args.output is not None:
        args.output.write_text(json.dumps(found.to_dict(), indent=2) + "\n", encoding="utf-8")
    return 0


def _rows(engine: RemoteEngine, grid: int | None) -> list[Weighting]:
    """The reference first if there is one, each policy, profiles, grid; equal weights once."""
    from weights.evaluation import Weighting, simplex_grid

    names = engine.spec.member_names
    num_policies = len(engine.spec.policies)
    singles = {name: tuple(float(name == other) for other in names) for name in names}
    order = [*names[num_policies:], *names[:num_policies]]
    rows = {name: singles[name] for name in order}
    rows |= {f"@{name}": weights for name, weights in engine.profiles.items()}
    padding = (0.0,) * (len(names) - num_policies)
    for weights in simplex_grid(num_policies, grid) if grid else ():
        rows[" ".join(f"{weight:.3g}" for weight in weights)] = (*weights, *padding)
    found: dict[tuple[float, ...], Weighting] = {}
    for name, weights in rows.items():
        found.setdefault(weights, Weighting(name=name, weights_M=weights))
    return list(found.values())


def _rewards(items: Sequence[str], *, allow_unsafe_weights: bool) -> dict[str, Reward]:
    rewards: dict[str, Reward] = {}
    for item in items:
        name, _, spec = item.partition("=")
        if not name or not spec:
            raise CommandError(
                f"--reward is {item!r}; expected NAME=module:function or NAME=CHECKPOINT",
                exit_code=2,
            )
        if name in rewards:
            raise CommandError(f"--reward names {name!r} twice; an objective has one", exit_code=2)
        rewards[name] = _judge(spec, allow_unsafe_weights=allow_unsafe_weights)
    return rewards


def _judge(
    spec: str, *, allow_unsafe_weights: bool
) -> Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]]:
    """A reward of the training room, asked in a fit's words."""
    from policies.train.pairs import Content
    from policies.train.rewards import load_reward

    reward = load_reward(spec, max_length=4096, allow_unsafe_weights=allow_unsafe_weights)

    def judge(prompts: Sequence[Prompt], answers: Sequence[str]) -> Sequence[float]:
        asked: list[Content] = []
        said: list[Content] = []
        for prompt, answer in zip(prompts, answers, strict=True):
            if prompt.messages is None:
                asked.append(prompt.text or "")
                said.append(answer)
            else:
                asked.append([dict(message) for message in prompt.messages])
                said.append([{"role": "assistant", "content": answer}])
        names = [f"an answer to prompt {prompt.id}" for prompt in prompts]
        return reward.score(asked, said, names)

    return judge


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}; expected 1 or more")
    return number
