"""All PromQL expressions in deploy/, with their places."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

DEPLOY = Path(__file__).resolve().parent
DASHBOARDS = DEPLOY / "grafana" / "dashboards"
RULES = DEPLOY / "prometheus" / "rules"


@dataclass(frozen=True)
class Query:
    """One PromQL expression and its place."""

    where: str
    """Board and panel, or the rule's name."""
    expr: str
    """The expression without Grafana's variables."""

    @property
    def metrics(self) -> set[str]:
        """Names of the metrics that it reads, histograms with their suffix."""
        outside = re.sub(r'"[^"]*"|\{[^}]*\}', "", self.expr)
        return set(re.findall(r"\b(?:prefmix_|vllm:|http_|process_|instance)[\w:]+", outside))


def dashboard_queries(*, rate_interval: str = "1m") -> Iterator[Query]:
    """Yields the expressions of panels, variables and annotations, with everything selected.

    Args:
      rate_interval: the value for Grafana's `$__rate_interval`.
    """
    for path in sorted(DASHBOARDS.glob("*.json")):
        board = json.loads(path.read_text(encoding="utf-8"))
        title = board["title"]
        found = [
            (f"{title}, {panel['title']}", target["expr"])
            for panel in board["panels"]
            for target in panel.get("targets", [])
        ]
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                selector = re.fullmatch(r"label_values\((.+), \w+\)", variable["query"])
                assert selector, variable["query"]
                found.append((f"{title}, variable {variable['name']}", selector[1]))
        for annotation in board.get("annotations", {}).get("list", []):
            found.append((f"{title}, annotation {annotation['name']}", annotation["expr"]))
        for where, expr in found:
            plain = expr.replace("$__rate_interval", rate_interval)
            yield Query(where, re.sub(r"\$\w+", ".*", plain))


def rule_queries() -> Iterator[Query]:
    """Yields the expressions of recording rules and alerts.

    An alert's comparisons become 0 or 1, so that it has an answer while it does not fire.
    """
    for path in sorted(RULES.glob("*.yaml")):
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            for rule in group["rules"]:
                if "record" in rule:
                    yield Query(rule["record"], rule["expr"])
                else:
                    with_bool = re.sub(r" (==|!=|>=|<=|>|<) ", r" \1 bool ", rule["expr"])
                    yield Query(f"alert {rule['alert']}", with_bool)
