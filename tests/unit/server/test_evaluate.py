"""`prefmix eval`: its rows and refusals; nothing here asks a server."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from mixing.spec import MixtureSpec, Policy
from server.cli import main
from server.evaluate import _judge, _rows
from weights.prompts import Prompt

REQUIRED = ["eval", "--server", "http://127.0.0.1:9", "--prompts", "absent.jsonl", "--reward"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["a"], 2, "expected NAME=module:function"),
        (["a=math:pi"], 1, "is a float, no function"),
        (["a=os:getcwd", "--reward", "a=os:getcwd"], 2, "names 'a' twice"),
        (["a=os:getcwd"], 1, "absent.jsonl: cannot be read"),
        (["a=os:getcwd", "--grid", "0"], 2, "expected 1 or more"),
    ],
)
def test_wrong_usage_is_one_sentence(
    words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*REQUIRED, *words]) == code
    assert message in capsys.readouterr().err


def test_rows_are_reference_policies_profiles_and_grid_each_once() -> None:
    spec = MixtureSpec(
        policies=tuple(Policy(name=name, model=name) for name in "pq"),
        reference=Policy(name="r", model="r"),
    )
    profiles = {"even": (0.5, 0.5, 0.0), "mostly": (0.9, 0.1, 0.0)}
    engine = SimpleNamespace(spec=spec, profiles=profiles)
    rows = _rows(engine, 4)  # type: ignore[arg-type]
    assert [row.name for row in rows] == [
        "r",
        "p",
        "q",
        "@even",
        "@mostly",
        "0.25 0.75",
        "0.75 0.25",
    ]
    assert rows[0].weights_M == (0.0, 0.0, 1.0)
    assert rows[-1].weights_M == (0.75, 0.25, 0.0)


def test_judges_see_messages_where_prompts_are_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "echo_reward.py").write_text(
        "def f(prompts, completions):\n    seen.append((prompts[0], completions[0]))\n"
        "    return [1.0]\nseen = []\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    chat = {"role": "user", "content": "hello"}
    prompts = [Prompt(id="1", text="hello"), Prompt(id="2", messages=(chat,))]
    judge = _judge("echo_reward:f", allow_unsafe_weights=False)
    assert list(judge(prompts, ["hi", "hi"])) == [1.0, 1.0]
    import echo_reward

    answer = [{"role": "assistant", "content": "hi"}]
    assert echo_reward.seen == [("hello", "hi"), ([chat], answer)]
