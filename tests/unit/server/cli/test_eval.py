"""`prefmix eval`: its averages, rewards and refusals; nothing here asks a server."""

import sys
from pathlib import Path

import pytest

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.mixing.ways_to_mix import MIXINGS
from prefmix.policies.errors import TrainError
from prefmix.server.cli.eval_rewards import load_judge
from prefmix.server.cli.eval_subject import average_shares, ways_to_mix
from prefmix.server.cli.main import main
from prefmix.server.config.errors import CommandError
from prefmix.weights.engines.prompts import Prompt

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


def test_averages_are_named_after_profiles() -> None:
    spec = MixtureSpec(policies=tuple(Policy(name=name, model=name) for name in "pq"))
    profiles = {"mostly": (0.9, 0.1)}
    assert average_shares(None, spec, profiles) == {"uniform": {"p": 0.5, "q": 0.5}}
    assert average_shares(["mostly"], spec, profiles) == {"mostly": {"p": 0.9, "q": 0.1}}
    assert average_shares(["none"], spec, profiles) == {}
    with pytest.raises(CommandError, match="allowed: uniform, none, mostly"):
        average_shares(["most"], spec, profiles)


def test_adapters_are_mixed_in_both_ways_and_need_no_average() -> None:
    policies = tuple(Policy(name=name, model=name) for name in "pq")
    full, trunk = MixtureSpec(policies=policies), MixtureSpec(policies=policies, base="b")
    assert (ways_to_mix(None, full), ways_to_mix(None, trunk)) == (("logits",), MIXINGS)
    assert ways_to_mix("parameters", trunk) == ("parameters",)
    assert ways_to_mix("both", trunk) == MIXINGS
    for asked in ("both", "parameters"):
        with pytest.raises(CommandError, match=f"--mixing {asked}: full checkpoints have no"):
            ways_to_mix(asked, full)
    assert average_shares(None, trunk, {}) == average_shares(["none"], trunk, {}) == {}
    with pytest.raises(CommandError, match="adapters of one base need none"):
        average_shares(["uniform"], trunk, {})


@pytest.mark.parametrize("base", [None, "b"])
def test_policies_with_prompts_of_their_own_are_one_model_in_no_way(base: str | None) -> None:
    policies = tuple(Policy(name=name, model=name) for name in "pq")
    spec = MixtureSpec(policies=policies, base=base, has_prompts=True, prompts_sha256="a" * 64)
    assert ways_to_mix(None, spec) == ways_to_mix("logits", spec) == ("logits",)
    with pytest.raises(CommandError, match="--mixing both: mixed parameters are one model, which"):
        ways_to_mix("both", spec)
    assert average_shares(None, spec, {}) == average_shares(["none"], spec, {}) == {}
    with pytest.raises(CommandError, match="--average is one model, which reads one prompt"):
        average_shares(["uniform"], spec, {})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give either policies"),
        (["policies/demo/serve.yaml", "--server", "http://127.0.0.1:9"], "give either policies"),
        (["--server", "http://127.0.0.1:9", "--average", "uniform"], "needs the policies' files"),
        (["--server", "http://127.0.0.1:9", "--", "--dtype", "float32"], "--server has its own"),
        (["policies/demo/serve.yaml", "--mixing", "both"], "--mixing both: full checkpoints"),
        (["policies/demo/serve.yaml", "--average", "x"], "allowed: uniform, none, balanced"),
        (["policies/demo/serve.yaml", "--weights-store", "gone.json"], "gone.json: cannot be read"),
        (["--policy", "a=./gone"], "does not exist"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "hello"}\n')
    flags = ["--prompts", str(prompts), "--reward", "a=prefmix.policies.demo.judges:concise"]
    assert main(["eval", *flags, *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_judges_see_messages_where_prompts_are_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "echo_reward.py").write_text(
        "def f(prompts, completions):\n    seen.append((prompts[0], completions[0]))\n"
        "    return [1.0] * len(prompts)\nseen = []\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    chat = {"role": "user", "content": "hello"}
    prompts = [Prompt(id="1", text="hello"), Prompt(id="2", messages=(chat,))]
    judge = load_judge("echo_reward:f", allow_unsafe_weights=False)
    assert list(judge(prompts, ["hi", "hi"], [[5], [5, 6]])) == [1.0, 1.0]
    import echo_reward

    answer = [{"role": "assistant", "content": "hi"}]
    assert echo_reward.seen == [("hello", "hi"), ([chat], answer)]


def test_rewards_are_tried_before_the_engine_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each once for texts and once for chats, with the columns of the prompt."""
    (tmp_path / "tried.py").write_text(
        "seen = []\n"
        "def f(prompts, completions, truth, completion_ids):\n"
        "    seen.append((prompts[0], truth[0]))\n"
        "    if isinstance(prompts[0], list):\n"
        "        raise ValueError('a chat')\n"
        "    return [None]\n"
    )
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        '{"prompt": "hello", "truth": 1}\n{"prompt": "you", "truth": 2}\n'
        '{"messages": [{"role": "user", "content": "hi"}], "truth": 3}\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def subject(*_: object) -> None:
        raise AssertionError("the reward was not tried first")

    monkeypatch.setattr("prefmix.server.cli.eval.eval_subject", subject)
    words = ["eval", "--policy", "a=./a", "--prompts", "prompts.jsonl", "--reward"]
    assert main([*words, "r=tried.py:f"]) == 1
    error = capsys.readouterr().err
    assert (
        "an answer to prompt 3: the reward function tried.py:f raised ValueError: a chat" in error
    )
    assert "(tried.py:5)" in error
    assert "made-up answer" in error
    module = next(each for name, each in sys.modules.items() if name.startswith("_reward_tried"))
    assert module.seen == [("hello", 1), ([{"role": "user", "content": "hi"}], 3)]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [float('nan')]", "is nan"),
        ("raise OSError('no judge')", "raised OSError: no judge"),
    ],
)
def test_reward_that_fails_names_the_prompt(
    body: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"failing_{len(body)}"
    (tmp_path / f"{name}.py").write_text(f"def f(prompts, completions):\n    {body}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    judge = load_judge(f"{name}:f", allow_unsafe_weights=False)
    with pytest.raises(TrainError, match=f"an answer to prompt seven: .*{message}"):
        judge([Prompt(id="seven", text="hello")], ["hi"], [[5]])
