"""The tour prints the right findings for known rewards; the server is tested elsewhere."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from prefmix.policies.demo.tour import __main__ as tour
from prefmix.policies.demo.tour import findings, questions, server
from prefmix.policies.demo.tour.questions import PROMPT_ROWS, ROWS, Answers, Row

PRAISE = "It was wonderful, superb and excellent."
THANKS = "Thank you for your kind attention, I would like to thank the staff. Many thanks."
SHORT = "Fine."
PLAIN = "It stood at the end of a road that ran along the water for quite some way before it bent."


def answers(*texts: str) -> Answers:
    weights = {"positive": 1 / 3, "concise": 1 / 3, "polite": 1 / 3, "reference": 0.0}
    return Answers(weights=weights, texts=texts * 50, examples=texts)


@pytest.fixture
def everything() -> dict[Row, Answers]:
    """Each corner is best at its own objective; the uniform mixture beats the reference in all."""
    texts = {
        "reference": (PLAIN, PLAIN),
        "positive": (PRAISE, PRAISE),
        "concise": (SHORT, SHORT),
        "polite": (THANKS, THANKS),
        "uniform": (PRAISE, THANKS, SHORT),
    }
    return {row: answers(*texts.get(row.name, (PLAIN, PLAIN))) for row in ROWS}


def test_table_is_aligned_and_narrow(everything: dict[Row, Answers]) -> None:
    lines = findings.table(everything).splitlines()
    body = lines[lines.index("-" * len(lines[1])) + 1 :]
    assert len(body) == len(ROWS)
    assert {len(line) for line in body} == {len(lines[1])}
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in body] == [row.name for row in ROWS]
    assert sum(line.count("*") for line in body) == len(questions.OBJECTIVES)


def test_conclusion_says_only_what_holds(everything: dict[Row, Answers]) -> None:
    text = findings.conclusion(everything)
    assert "best at its own objective" in text
    assert "above the reference policy in every objective: uniform." in text
    same = {row: answers(PLAIN, SHORT) for row in ROWS}
    text = findings.conclusion(same)
    assert "best at its own" not in text
    assert "above the reference" not in text


def test_conclusion_of_prompts_says_only_what_holds() -> None:
    texts = {
        "positive": (PRAISE, PRAISE),
        "concise": (SHORT, SHORT),
        "polite": (THANKS, THANKS),
        "negative prompt": (PLAIN, PRAISE),
    }
    found = {row: answers(*texts.get(row.name, (PLAIN, PLAIN))) for row in PROMPT_ROWS}
    text = findings.conclusion_of_prompts(found)
    assert "best at its own objective" in text
    assert "Find fault with it." in text
    text = findings.conclusion_of_prompts({row: answers(PLAIN, SHORT) for row in PROMPT_ROWS})
    assert "best at its own" not in text
    assert "Find fault" not in text
    lines = findings.table(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert [line[:16].strip() for line in lines[3:]] == [row.name for row in PROMPT_ROWS]


def test_typical_example_is_nearest_to_the_means() -> None:
    several = Answers(weights={}, texts=(PRAISE, SHORT, SHORT), examples=(PRAISE, SHORT))
    assert several.typical_example() == SHORT


@pytest.mark.parametrize("config", [server.CONFIG, server.PROMPTS_CONFIG])
def test_the_server_has_room_for_what_is_asked_at_once(config: Path) -> None:
    """The server admits only the requests that it runs and a few that wait."""
    engine = yaml.safe_load(config.read_text(encoding="utf-8"))["engine"]
    assert engine["max_num_seqs"] >= questions.MAX_IN_FLIGHT * questions.RESPONSES_PER_PROMPT
    assert engine["max_num_seqs"] >= questions.NUM_EXAMPLES


def test_a_server_that_does_not_start_is_reported_with_its_last_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class FailingServer(subprocess.Popen[bytes]):
        def __init__(self, command: object, **options: object) -> None:
            script = "import sys; sys.exit('prefmix: error: no such folder')"
            super().__init__([sys.executable, "-c", script], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(server.subprocess, "Popen", FailingServer)
    monkeypatch.setattr(tour.signal, "signal", lambda *_: None)
    assert tour.main() == 1
    printed = capsys.readouterr()
    assert "the server ended with code 1:\n  prefmix: error: no such folder" in printed.err
    assert "Traceback" not in printed.err
