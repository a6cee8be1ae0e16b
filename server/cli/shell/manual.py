"""The part of a command's help that its flags do not tell: examples, variables, files, exit codes.

`prefmix help COMMAND` and `prefmix COMMAND --help` print it behind the flags.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from prefmix.server.cli.shell.help_text import HelpFormatter


@dataclass(frozen=True, kw_only=True, slots=True)
class Manual:
    """The sections of one command."""

    examples: tuple[tuple[str, str], ...]
    """(what it does, the command) pairs."""
    environment: tuple[tuple[str, str], ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    exit_codes: tuple[tuple[str, str], ...] = (
        ("0", "done"),
        ("1", "failed or refused"),
        ("2", "wrong usage or configuration"),
        ("129, 130, 143", "ended by SIGHUP, Ctrl-C or SIGTERM; what was not finished is removed"),
    )
    see_also: tuple[str, ...] = ()
    """Commands, and pages of docs/."""


_KEY = ("PREFMIX_API_KEY, PREFMIX_API_KEY_FILE", "the API key, or a file of keys")
_TOKEN = ("PREFMIX_ADMIN_TOKEN, PREFMIX_ADMIN_TOKEN_FILE", "the admin token, or a file of them")
_LOG_LEVEL = ("PREFMIX_LOG_LEVEL", "warning (default), info or debug: vLLM's lines on stderr")
_KV_CACHE = ("VLLM_CPU_KVCACHE_SPACE", "GiB of KV cache on a CPU; default 1")

MANUALS = {
    "serve": Manual(
        examples=(
            ("the demo policies", "prefmix serve policies/demo/serve.yaml"),
            (
                "two checkpoints of your own",
                "prefmix serve --policy helpful=./helpful --policy harmless=./harmless",
            ),
            (
                "two adapters on one base, whose base is the reference",
                "prefmix serve --base ./base --adapter a=./a --adapter b=./b "
                "--reference start=./base",
            ),
            (
                "one model under two prompts of its own",
                "prefmix serve --base ./base --system kind=@kind.txt --system brief=@brief.txt",
            ),
            (
                "weights that can change while serving",
                "prefmix serve mixture.yaml --weights-store weights.json",
            ),
            ("flags of vLLM", "prefmix serve mixture.yaml -- --max-model-len 4096"),
        ),
        environment=(_KEY, _TOKEN, _LOG_LEVEL, _KV_CACHE),
        files=(
            (
                "CONFIG.yaml",
                "keys: policies, adapters, base, reference, systems, profiles, default_profile, "
                "allowed_hosts, trusted_proxies, console, slot_prompts, engine (vLLM's flags) and, "
                "with _ for -, the other flags of this page",
            ),
            ("weights.json", "the store: profiles, their versions in weights.json.history/"),
        ),
        exit_codes=(
            ("0", "ended by a signal after it was ready"),
            ("1", "did not start, or failed"),
            ("2", "wrong usage or configuration"),
            ("130, 143", "ended by Ctrl-C or SIGTERM while it started"),
        ),
        see_also=("prefmix doctor", "prefmix weights", "docs/serving.md", "docs/engine-flags.md"),
    ),
    "fit": Manual(
        examples=(
            (
                "weights for your prompts, into the store of a server",
                "prefmix fit mixture.yaml --prompts prompts.jsonl --output weights.json",
            ),
            (
                "the same on a running server's engine",
                "prefmix fit --server http://127.0.0.1:8000 --prompts prompts.jsonl "
                "--output weights.json",
            ),
        ),
        environment=(_KEY, _KV_CACHE),
        files=(
            ("weights.json", "the store that the profile is written to"),
            (".prefmix/fit", "draws and scores, so that a killed fit goes on"),
        ),
        see_also=("prefmix weights", "docs/fitting.md"),
    ),
    "weights": Manual(
        examples=(
            (
                "a new profile in a file",
                "prefmix weights set careful helpful=1 harmless=3 --weights-store weights.json",
            ),
            (
                "make it the default of a running server",
                "prefmix weights default careful --url http://127.0.0.1:8000",
            ),
            ("who changed what, and when", "prefmix weights history --weights-store weights.json"),
            (
                "the default's weights over time, as a picture",
                "prefmix weights history --weights-store weights.json --plot history.png",
            ),
            ("undo", "prefmix weights rollback --url http://127.0.0.1:8000"),
        ),
        environment=(_TOKEN,),
        files=(("weights.json.history/", "the versions before"),),
        see_also=("prefmix fit", "docs/profiles.md"),
    ),
    "policies": Manual(
        examples=(
            (
                "a new adapter for a running server",
                "prefmix policies add careful careful/step-400 --url http://127.0.0.1:8000",
            ),
            ("which there are", "prefmix policies list --url http://127.0.0.1:8000"),
        ),
        environment=(_TOKEN,),
        see_also=("prefmix weights", "docs/policies_at_runtime.md"),
    ),
    "train": Manual(
        examples=(
            (
                "an adapter from preference pairs",
                "prefmix train dpo --base ./base --data pairs.jsonl --output helpful "
                "--lora-rank 16",
            ),
        ),
        files=(("OUTPUT.stages", "an unfinished run, which the same command resumes"),),
        see_also=("docs/training.md",),
    ),
    "eval": Manual(
        examples=(
            (
                "policies, profiles and mixtures in steps of a quarter",
                "prefmix eval mixture.yaml --prompts heldout.jsonl --grid 4 --output found.json "
                "--reward helpful=rewards:helpful",
            ),
        ),
        environment=(_KEY, _KV_CACHE),
        see_also=("prefmix fit", "docs/evaluation.md"),
    ),
    "average": Manual(
        examples=(
            (
                "one checkpoint at a profile's weights",
                "prefmix average mixture.yaml --profile careful --output averaged",
            ),
        ),
        see_also=("prefmix export", "docs/averages.md"),
    ),
    "export": Manual(
        examples=(
            (
                "one adapter at a profile's weights",
                "prefmix export mixture.yaml --profile careful --output averaged",
            ),
        ),
        see_also=("prefmix average", "docs/averages.md"),
    ),
    "bench": Manual(
        examples=(
            ("output speed beside the alternatives", "prefmix bench engine --rounds 3"),
            ("bytes of parameters and KV cache", "prefmix bench memory --policies 2 3"),
        ),
        see_also=("docs/performance.md",),
    ),
    "doctor": Manual(
        examples=(
            ("this machine", "prefmix doctor"),
            ("what `prefmix serve` would start", "prefmix doctor mixture.yaml --port 8001"),
            ("for a program", "prefmix doctor mixture.yaml --json"),
        ),
        environment=(_KEY, _TOKEN),
        exit_codes=(
            ("0", "nothing is wrong; there may be warnings"),
            ("1", "something is wrong"),
            ("2", "wrong usage"),
        ),
        see_also=("prefmix serve", "docs/operations.md"),
    ),
    "completion": Manual(
        examples=(
            ("bash, in ~/.bashrc", 'eval "$(prefmix completion bash)"'),
            ("zsh, in ~/.zshrc after compinit", 'eval "$(prefmix completion zsh)"'),
            ("fish, in config.fish", "prefmix completion fish | source"),
        ),
        exit_codes=(("0", "done"), ("2", "wrong usage")),
    ),
}


def add_manual(name: str, parser: argparse.ArgumentParser) -> None:
    """Puts a command's sections behind its flags and its own closing words."""
    manual = MANUALS[name]
    parser.formatter_class = HelpFormatter
    examples = [line for what, command in manual.examples for line in (f"# {what}", command)]
    sections = [
        _section("examples", examples),
        _section("environment", _pairs(manual.environment)),
        _section("files", _pairs(manual.files)),
        _section("exit status", _pairs(manual.exit_codes)),
        _section("see also", [", ".join(manual.see_also)] if manual.see_also else []),
    ]
    parser.epilog = "\n\n".join(filter(None, (parser.epilog, *sections)))


def _section(title: str, lines: list[str]) -> str:
    return "\n".join([f"{title}:", *(f"  {line}" for line in lines)]) if lines else ""


def _pairs(pairs: tuple[tuple[str, str], ...]) -> list[str]:
    width = min(24, max((len(name) for name, _ in pairs), default=0))
    lines: list[str] = []
    for name, meaning in pairs:
        if len(name) > width:
            lines += [name, f"{'':{width}}  {meaning}"]
        else:
            lines.append(f"{name:{width}}  {meaning}")
    return lines
