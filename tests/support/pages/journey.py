"""Commands of the documents that tests run, and the reasons why the others are only parsed.

A block is named by its page and the beginning of its first line.
"""

from __future__ import annotations

from support.pages.commands import PAGES, Block, blocks, is_command

RUN = (
    ("docs/profiles.md", "export PREFMIX_ADMIN_TOKEN="),
    ("docs/profiles.md", "curl -s -X PUT"),
    ("README.md", "curl -s http://127.0.0.1:8000/v1/chat/completions"),
    ("docs/candidates.md", "curl -i http://127.0.0.1:8000"),
    ("README.md", ".venv/bin/prefmix serve policies/demo/serve.yaml --weights-store"),
    ("docs/fitting.md", ".venv/bin/prefmix fit policies/demo/serve.yaml"),
    ("docs/fitting.md", ".venv/bin/prefmix weights apply weights.json --url"),
)
"""Run by `tests/processes/test_documents.py` in this order, in one shell, on one server."""

RUN_PROMPTS = (
    ("docs/prompts.md", ".venv/bin/prefmix serve policies/demo/prompts.yaml"),
    ("docs/prompts.md", "curl http://127.0.0.1:8000"),
    ("docs/prompts.md", ".venv/bin/python -m examples.prompt_recipes"),
)
"""Run there too, on a server of their own; a name stands for all of its blocks."""

_OTHER_SERVER = "another server; its flags are parsed"
_OWN_FILES = "needs policies or data of your own; its flags are parsed"
_MINUTES = "takes minutes to hours; its flags are parsed"
_MAKE = "`.ci/run` makes this or its parts; the targets exist"
_NETWORK = "needs a package index; tests/unit/packaging compares the page with the set-up"
_CLUSTER = "needs Docker or a cluster; tests/unit/deploy checks what it applies"

PARSED = {
    ("README.md", "make demo"): _MAKE,
    ("README.md", "pip wheel"): _NETWORK,
    ("SECURITY.md", "openssl rand"): _OWN_FILES,
    ("docs/averages.md", ".venv/bin/prefmix average"): (
        "run by tests/unit/server/cli/averaging, where vLLM is imported already"
    ),
    ("docs/averages.md", ".venv/bin/prefmix export"): _OWN_FILES,
    ("docs/candidates.md", ".venv/bin/prefmix eval policies/demo"): _MINUTES,
    ("docs/console.md", ".venv/bin/prefmix serve policies/demo/serve.yaml"): _OTHER_SERVER,
    ("docs/console.md", ".venv/bin/python -m pytest"): _MAKE,
    ("docs/deploying.md", "docker compose"): _CLUSTER,
    ("docs/deploying.md", "export PREFMIX_MODELS"): _CLUSTER,
    ("docs/deploying.md", "kubectl apply"): _CLUSTER,
    ("docs/deploying.md", "prefmix weights apply fitted.json"): _CLUSTER,
    ("docs/deploying.md", "for pod in"): _CLUSTER,
    ("docs/deploying.md", "CUDA_VISIBLE_DEVICES=0"): "needs GPUs",
    ("docs/deploying.md", "prefmix serve serve.yaml -- --tensor"): "needs GPUs",
    ("docs/deploying.md", "prefmix serve serve.yaml --weights-store"): (
        "needs two machines; tests/processes/test_two_nodes.py has both on loopback"
    ),
    ("docs/deploying.md", "ray start"): "needs Ray and GPUs",
    ("docs/deploying.md", "curl --data-binary"): "needs a push gateway",
    ("docs/policies_at_runtime.md", "prefmix serve serve.yaml"): _OWN_FILES,
    ("docs/policies_at_runtime.md", "prefmix policies add"): _OTHER_SERVER,
    ("docs/policies_at_runtime.md", "curl -s -X PUT"): _OTHER_SERVER,
    ("docs/evaluation.md", ".venv/bin/prefmix eval mixture.yaml"): _OWN_FILES,
    ("docs/evaluation.md", ".venv/bin/prefmix eval policies/demo"): _MINUTES,
    ("docs/fit_demo.md", "make fit-demo"): _MINUTES,
    ("docs/fitting.md", ".venv/bin/prefmix fit --objective max-min-reward"): _MINUTES,
    ("docs/installing.md", "python3 -m venv"): _NETWORK,
    ("docs/installing.md", "eval "): "run by tests/unit/server/cli/shell",
    ("docs/installing.md", "pip install --no-deps"): _NETWORK,
    ("docs/installing.md", "pip wheel"): _NETWORK,
    ("docs/installing.md", "uv build"): _NETWORK,
    ("docs/mixing.md", "curl http://127.0.0.1:8000"): _OTHER_SERVER,
    ("docs/offline_gpu.md", "make gpu-kit"): _NETWORK,
    ("docs/offline_gpu.md", "python3 install.py"): "needs a GPU",
    ("docs/offline_gpu.md", "python3 scripts/gpu_first_run.py"): _MINUTES,
    ("docs/performance.md", "prefmix bench"): _MINUTES,
    ("docs/performance.md", "pip install guidellm"): _NETWORK,
    ("docs/prompts.md", ".venv/bin/prefmix serve --base"): _OWN_FILES,
    ("docs/prompts.md", ".venv/bin/prefmix serve policies/demo/prompt_and"): _OTHER_SERVER,
    ("docs/reliability.md", "make test-resilience"): _MAKE,
    ("docs/serving.md", ".venv/bin/prefmix serve --policy helpful"): _OWN_FILES,
    ("docs/serving.md", ".venv/bin/prefmix serve --base"): _OWN_FILES,
    ("docs/serving.md", ".venv/bin/prefmix serve policies/demo"): _OTHER_SERVER,
    ("docs/serving.md", ".venv/bin/prefmix serve --policy a="): _OWN_FILES,
    ("docs/serving.md", ".venv/bin/prefmix serve --policy chat="): _OWN_FILES,
    ("docs/training.md", "make setup-train"): _MINUTES,
    ("docs/training.md", "make eval-training"): _MINUTES,
}
"""Blocks that are parsed only, and why."""


def command_blocks() -> list[Block]:
    """All blocks of commands of all pages, in their order."""
    return [block for page in PAGES for block in blocks(page) if is_command(block)]


def named(name: tuple[str, str]) -> list[Block]:
    """The blocks that a table's entry names."""
    page, first = name
    return [each for each in command_blocks() if each.page == page and each.first.startswith(first)]
