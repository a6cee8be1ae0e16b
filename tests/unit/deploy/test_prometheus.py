"""The rules: Prometheus accepts them, they fire when they should, they name what exists."""

import re
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.queries import RULES, Query, dashboard_queries, rule_queries
from prefmix.server.auth.hosts import AllowedHosts
from support import tools

PROMETHEUS = RULES.parent
TESTS = PROMETHEUS / "tests" / "alerts.yaml"
SERVER = Path(__file__).resolve().parents[3] / "server"
RULE_LIST: list[dict[str, Any]] = [
    rule
    for path in sorted(RULES.glob("*.yaml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULE_LIST if "alert" in rule}
QUERIES = [*dashboard_queries(), *rule_queries()]


@pytest.mark.parametrize(
    "arguments", [("check", "config", "prometheus.yml"), ("test", "rules", "tests/alerts.yaml")]
)
def test_promtool_passes(arguments: tuple[str, ...]) -> None:
    promtool = tools.find("promtool")
    run = subprocess.run(
        [promtool, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_server_answers_to_what_prometheus_and_kubernetes_call_it() -> None:
    """They name a service, or the address of a pod, to a server that listens everywhere."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    (targets,) = jobs["prefmix"]["static_configs"]
    allowed = AllowedHosts([], bound="0.0.0.0")
    for host in (*targets["targets"], "10.244.3.17:8000", "prefmix.mixing.svc:8000"):
        assert allowed.allows(host)
    assert not allowed.allows("prometheus.example.org")


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_is_seen_firing_and_says_what_to_do(name: str) -> None:
    alert = ALERTS[name]
    assert f'alertname="{name}", alertstate="firing"' in TESTS.read_text()
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert set(alert["annotations"]) == {"summary", "description", "runbook"}


def _vllm_sources() -> str:
    vllm = find_spec("vllm")  # without importing it
    if vllm is None or not vllm.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    folder = Path(vllm.submodule_search_locations[0]) / "v1"
    paths = [*(folder / "metrics").glob("*.py"), *(folder / "spec_decode").glob("*.py")]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.where)
def test_queries_name_metrics_that_exist(query: Query) -> None:
    """deploy/check_live.py asks a real server; this only catches a name that has changed."""
    recorded = {rule["record"] for rule in RULE_LIST if "record" in rule}
    sources = "".join(path.read_text(encoding="utf-8") for path in SERVER.rglob("*metrics.py"))
    ours = set(re.findall(r'"(prefmix_\w+)"', sources))
    from_elsewhere = {"prefmix_reward", "http_requests_total", "process_resident_memory_bytes"}
    vllm = _vllm_sources()
    for metric in query.metrics - recorded - from_elsewhere:
        name = re.sub(r"_(total|bucket|sum|count)$", "", metric)
        known = f'"{name}"' in vllm if name.startswith("vllm:") else name in ours
        assert known or metric in ours, f"{query.where}: {metric}"
