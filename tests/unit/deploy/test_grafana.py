"""The dashboards: their JSON is what the code makes, whole and readable."""

import json
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest

pytest.importorskip("grafana_foundation_sdk", reason="pip install -r requirements/cpu.lock")

from deploy.generate import DASHBOARDS, generated

BOARDS = {path.stem: json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))}


def _panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from (panel for panel in board["panels"] if panel["type"] != "row")


def test_committed_files_are_what_the_code_makes() -> None:
    """If this fails: .venv/bin/python -m deploy.generate"""
    for path, text in generated().items():
        assert path.read_text(encoding="utf-8") == text, path
    assert {path.stem for path in generated() if path.suffix == ".json"} == set(BOARDS)


@pytest.mark.parametrize("name", BOARDS)
def test_boards_can_be_narrowed_and_every_panel_explains_itself(name: str) -> None:
    board = BOARDS[name]
    variables = [variable["name"] for variable in board["templating"]["list"]]
    assert variables[:4] == ["datasource", "job", "instance", "profile"]
    assert board["uid"] == name
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)
    for panel in _panels(board):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        # Grafana merges queries of one panel that share an id.
        ids = [target["refId"] for target in panel["targets"]]
        assert all(ids), panel["title"]
        assert len(set(ids)) == len(ids), panel["title"]
        for target in panel["targets"]:
            assert "$instance" in target["expr"] or "prefmix_reward" in target["expr"], target


@pytest.mark.parametrize("name", BOARDS)
def test_panels_lie_side_by_side(name: str) -> None:
    boxes = [panel["gridPos"] for panel in BOARDS[name]["panels"]]
    assert all(box["x"] + box["w"] <= 24 for box in boxes)
    for one, other in combinations(boxes, 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
