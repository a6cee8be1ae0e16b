"""Writes the generated files of deploy/.

    .venv/bin/python -m deploy.generate

They are the dashboards' JSON for Grafana, made from deploy/grafana/, and the PrometheusRule of
deploy/kubernetes, made from deploy/prometheus/rules.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana.mixture import mixture
from deploy.grafana.overview import overview

DEPLOY = Path(__file__).resolve().parent
DASHBOARDS = DEPLOY / "grafana" / "dashboards"
RULES = DEPLOY / "prometheus" / "rules"
PROMETHEUS_RULE = DEPLOY / "kubernetes" / "monitoring" / "prometheus-rule.yaml"


def generated() -> dict[Path, str]:
    """Generated file -> its text."""
    boards = {f"prefmix-{board.__name__}.json": board() for board in (overview, mixture)}
    texts = {DASHBOARDS / name: _dashboard_text(board) for name, board in boards.items()}
    return texts | {PROMETHEUS_RULE: _prometheus_rule()}


def _dashboard_text(board: Dashboard) -> str:
    data: dict[str, Any] = json.loads(json.dumps(board.build(), cls=JSONEncoder))
    for number, panel in enumerate(data["panels"], start=1):
        panel["id"] = number
    for annotation in data.get("annotations", {}).get("list", []):
        # The SDK's type lacks these fields of Prometheus' annotations.
        annotation |= {"step": "60s", "titleFormat": "weights version {{version}}"}
    return json.dumps(data, indent=1, sort_keys=True) + "\n"


def _prometheus_rule() -> str:
    groups = [
        group
        for path in sorted(RULES.glob("*.yaml"))
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    ]
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "prefmix"},
        "spec": {"groups": groups},
    }
    head = "# Written by deploy/generate.py from deploy/prometheus/rules; do not edit.\n"
    return head + yaml.safe_dump(rule, sort_keys=False, width=100)


if __name__ == "__main__":
    for file, text in generated().items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        print(file.relative_to(DEPLOY.parent))
