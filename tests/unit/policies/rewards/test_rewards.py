"""Every fault of a reward function is reported with the row's name."""

import asyncio
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification, LlamaConfig

from prefmix.policies.errors import TrainError
from prefmix.policies.rewards.functions import BATCH_ROWS, FunctionReward
from prefmix.policies.rewards.loading import load_function, load_reward
from prefmix.policies.rewards.reward import Answers
from prefmix.policies.safe_files import check_safe, loading
from support.checkpoints.tiny_policies import build_tokenizer, save_policy

PROMPTS = ["p", "p", "p"]
ANSWERS = ["one", "two", "three"]


def _answers(
    prompts: Sequence[Any] = PROMPTS, answers: Sequence[Any] = ANSWERS, **others: Any
) -> Answers:
    names = [f"pairs line {number}" for number in range(1, len(answers) + 1)]
    return Answers(prompts=prompts, answers=answers, names=names, **others)


def _length(prompts: list[str], completions: list[str], **_: Any) -> list[int]:
    return [len(completion) for completion in completions]


def _raises(prompts: list[str], completions: list[str]) -> list[float]:
    return [1 / (len(completion) - 5) for completion in completions]


def test_function_scores_each_row() -> None:
    assert FunctionReward(_length, "f").score(_answers()) == [3.0, 3.0, 5.0]


def test_row_that_raises_is_named() -> None:
    with pytest.raises(TrainError, match=r"pairs line 3: .* f raised ZeroDivisionError"):
        FunctionReward(_raises, "f").score(_answers())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_row_without_a_finite_reward_is_named(value: float) -> None:
    def function(prompts: list[str], completions: list[str]) -> list[float]:
        return [value if completion == "two" else 0.0 for completion in completions]

    with pytest.raises(TrainError, match=f"pairs line 2: the reward of f is {value}"):
        FunctionReward(function, "f").score(_answers())


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (None, r"f returned None \(a NoneType\)"),
        (3.0, r"f returned 3.0 \(a float\)"),
        (torch.tensor(3.0), "f returned 3.0"),
        ("good", r"f returned 'good' \(a str\)"),
        ({1.0, 2.0, 3.0}, r"\(a set\)"),
        ({"one": 1.0}, r"\(a dict\)"),
        ([], "f returned a list of 0 numbers"),
        ([1.0, 2.0], "f returned a list of 2 numbers"),
        (torch.zeros(4), "f returned a list of 4 numbers"),
    ],
)
def test_what_is_not_one_number_an_answer_is_named(returned: Any, told: str) -> None:
    message = rf"pairs line 1 to pairs line 3: .*{told}; expected a list of 3 numbers, or None"
    with pytest.raises(TrainError, match=message):
        FunctionReward(lambda **_: returned, "f").score(_answers())
    with pytest.raises(TrainError, match=r"pairs line 1: .* expected a list of one number"):
        FunctionReward(lambda **_: [[1.0, 2.0]], "f").score(_answers(["p"], ["one"]))


@pytest.mark.parametrize("value", ["good", "3.5", [1.0], 1j, object(), torch.zeros(2)])
def test_row_of_something_else_than_a_number_is_named(value: Any) -> None:
    with pytest.raises(TrainError, match=r"pairs line 2: the reward function f returned .* for it"):
        FunctionReward(lambda **_: [1.0, value, 2.0], "f").score(_answers())


@pytest.mark.parametrize(
    "returned",
    [
        [1, 2.0, None],
        (True, np.float32(2), None),
        [torch.tensor(1.0, requires_grad=True), torch.tensor([2.0]).bfloat16(), None],
        (value for value in (1.0, 2.0, None)),
    ],
)
def test_numbers_of_any_kind_are_taken(returned: Any) -> None:
    assert FunctionReward(lambda **_: returned, "f").score(_answers()) == [1.0, 2.0, None]


@pytest.mark.parametrize(
    "returned",
    [
        np.array([1, 2, 3], dtype=np.int8),
        torch.tensor([1.0, 2.0, 3.0]).bfloat16().requires_grad_(),
        torch.tensor([[1.0], [2.0], [3.0]]),
        np.array([[1.0], [2.0], [3.0]]),
    ],
)
def test_tensors_and_arrays_are_taken(returned: Any) -> None:
    assert FunctionReward(lambda **_: returned, "f").score(_answers()) == [1.0, 2.0, 3.0]


def test_function_is_called_with_batches_and_gets_what_it_asks_for() -> None:
    """Columns, tokens and extras: all of them with `**`, else those that it names."""
    count = 2 * BATCH_ROWS + 1
    seen: list[dict[str, Any]] = []

    def everything(prompts: list[str], completions: list[str], **rest: Any) -> list[float]:
        seen.append(rest)
        return [float(len(prompts))] * len(prompts)

    def some(completions: list[str], truth: list[int]) -> list[bool]:
        return [int(answer) == each for answer, each in zip(completions, truth, strict=True)]

    answers = _answers(
        ["p"] * count,
        [str(number) for number in range(count)],
        columns={"truth": [number // 2 * 2 for number in range(count)], "source": ["x"] * count},
        completion_ids=[(number,) for number in range(count)],
        extras={"log_metric": print},
    )
    rewards = FunctionReward(everything, "f").score(answers)
    assert rewards == [float(BATCH_ROWS)] * (2 * BATCH_ROWS) + [1.0]
    assert [set(each) for each in seen] == 3 * [{"truth", "source", "completion_ids", "log_metric"}]
    assert seen[1]["completion_ids"][:2] == [[BATCH_ROWS], [BATCH_ROWS + 1]]
    assert seen[2]["truth"] == [count - 1]
    assert seen[0]["log_metric"] is print
    assert FunctionReward(some, "f").score(answers)[:4] == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("name", ["prompts", "completions", "completion_ids"])
def test_column_with_the_name_of_an_argument_is_refused(name: str) -> None:
    with pytest.raises(TrainError, match=f"has a column '{name}'.*such as f.*rename the column"):
        FunctionReward(_length, "f").score(_answers(columns={name: ["x"] * 3}))


def test_async_functions_and_objects_are_awaited_in_one_loop() -> None:
    """A client that a function keeps open belongs to the loop that it was opened in."""
    loops = set()

    class Judge:
        async def __call__(self, completions: list[str], **_: Any) -> list[float]:
            await asyncio.sleep(0)
            loops.add(asyncio.get_running_loop())
            return [float(len(completion)) for completion in completions]

    many = _answers(["p"] * 100, ["four"] * 100)
    assert FunctionReward(Judge(), "f").score(many) == [4.0] * 100
    assert len(loops) == 1


@pytest.mark.parametrize("wrong", [ValueError("no"), SystemExit(3), StopIteration()])
def test_row_on_which_a_batch_fails_is_found(wrong: BaseException) -> None:
    def late(completions: list[str]) -> Iterator[float]:
        for completion in completions:
            if completion == "two":
                raise wrong
            yield 1.0

    kind = "RuntimeError" if isinstance(wrong, StopIteration) else type(wrong).__name__
    with pytest.raises(TrainError, match=f"pairs line 2: .* f raised {kind}"):
        FunctionReward(late, "f").score(_answers())


def test_fault_that_no_row_has_alone_names_the_batch() -> None:
    def narrow(completions: list[str]) -> list[float]:
        if len(completions) > 2:
            raise MemoryError("too many")
        return [1.0] * len(completions)

    message = "pairs line 1 to pairs line 3, though for none of them alone: .* MemoryError"
    with pytest.raises(TrainError, match=message):
        FunctionReward(narrow, "f").score(_answers())


FAULTS = """
def late(completions, **kwargs):
    return [1 / (len(completion) - 5) for completion in completions]

def inside(completions, **kwargs):
    return [_helped(completion) for completion in completions]

def _helped(completion):
    import json
    return json.loads(completion)

async def awaited(completions, **kwargs):
    raise KeyError("judge")

class Judge:
    def __call__(self, completions, **kwargs):
        return ["good"] * len(completions)

judge = Judge()

def short(completions, **kwargs):
    return [1.0]

def endless(completions, **kwargs):
    return [float("inf")] * len(completions)

def needy(completions, truth, *, source):
    return [1.0] * len(completions)
"""


@pytest.mark.usefixtures("_own_path")
@pytest.mark.parametrize(
    ("name", "told", "line"),
    [
        ("late", "pairs line 3: .* raised ZeroDivisionError: division by zero", 3),
        ("inside", "pairs line 1: .* raised JSONDecodeError: .*", 10),
        ("awaited", "pairs line 1: .* raised KeyError: 'judge'", 13),
        ("judge", "pairs line 1: .* returned 'good' .*", 16),
        ("short", "pairs line 1 to pairs line 3: .* returned a list of one number; .*", 21),
        ("endless", "pairs line 1: the reward of .* is inf; .*", 24),
    ],
)
def test_faults_name_the_line_of_the_users_code(
    tmp_path: Path, name: str, told: str, line: int
) -> None:
    """That is the innermost line that is no library's, or of wrong values the definition."""
    file = tmp_path / f"faults_{name}.py"
    file.write_text(FAULTS)
    reward = load_reward(f"{file}:{name}", max_length=8)
    with pytest.raises(TrainError, match=rf"{told}.*\({file}:{line}\)$"):
        reward.score(_answers())


@pytest.mark.usefixtures("_own_path")
def test_files_of_the_working_directory_are_named_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_rewards.py").write_text(FAULTS)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainError, match=r" \(own_rewards\.py:3\)$"):
        load_reward("./own_rewards.py:late", max_length=8).score(_answers())


@pytest.mark.usefixtures("_own_path")
def test_argument_that_nobody_gives_is_named(tmp_path: Path) -> None:
    file = tmp_path / "needy_rewards.py"
    file.write_text(FAULTS)
    reward = load_reward(f"{file}:needy", max_length=8)
    message = r"needs truth and source; it is given, by name: prompts, completions, completion_ids$"
    with pytest.raises(TrainError, match=message):
        reward.score(_answers(completion_ids=[[1]] * 3))
    with pytest.raises(TrainError, match=rf"\({file}:27\) needs source; .*completions, truth$"):
        reward.score(_answers(columns={"truth": [1] * 3}))
    assert reward.score(_answers(columns={"truth": [1] * 3, "source": [2] * 3})) == [1.0] * 3


@pytest.mark.usefixtures("_own_path")
@pytest.mark.parametrize(("text", "line"), [("x = 1\ny = x.z\n", 2), ("x = 1\n\ndef f(:\n", 3)])
def test_a_file_that_cannot_be_imported_has_the_line_of_its_fault(
    tmp_path: Path, text: str, line: int
) -> None:
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(TrainError, match=rf"\({tmp_path}/broken\.py:{line}: \w+Error: "):
        load_reward(f"{tmp_path}/broken.py:f", max_length=8)


def test_interrupt_of_a_function_ends_the_command() -> None:
    def interrupted(**_: Any) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FunctionReward(interrupted, "f").score(_answers())


@pytest.fixture
def _own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


REWARDS = """
import beside
from dataclasses import dataclass

@dataclass
class Judge:
    factor: float = beside.FACTOR

    def __call__(self, completions, **kwargs):
        return [self.factor * len(completion) for completion in completions]

    @staticmethod
    def short(completions, **kwargs):
        return [-float(len(completion)) for completion in completions]

class Needy:
    def __init__(self, key):
        pass

short = Judge.short
made = Judge(3.0)
LIMIT = 5
"""


@pytest.mark.usefixtures("_own_path")
def test_functions_of_a_file_are_found(tmp_path: Path) -> None:
    """Also a class, an object, a dotted name, and modules beside the file; it runs once."""
    (tmp_path / "beside_rewards").mkdir()
    file = tmp_path / "beside_rewards" / "json.py"  # a name that another module has
    file.write_text(REWARDS.replace("beside", "beside_the_file"))
    (file.parent / "beside_the_file.py").write_text("FACTOR = 2.0\n")
    for name, expected in {
        "short": [-3.0, -3.0, -5.0],
        "Judge.short": [-3.0, -3.0, -5.0],
        "Judge": [6.0, 6.0, 10.0],
        "made": [9.0, 9.0, 15.0],
    }.items():
        reward = load_reward(f"{file}:{name}", max_length=8)
        assert reward.score(_answers()) == expected
    assert type(load_function(f"{file}:made")) is type(load_function(f"{file}:Judge"))


@pytest.mark.usefixtures("_own_path")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("FILE:shrot", r"has no 'shrot'\); .*did you mean 'short'\?"),
        ("FILE", r"has no name behind the file; expected module:function, or file\.py:function"),
        ("FILE:LIMIT", "is a int, no function"),
        ("FILE:Needy", "is a class and cannot be made without arguments .TypeError"),
        ("gone.py:short", r"there is no file gone\.py"),
        ("BROKEN:f", "SyntaxError"),
        ("ENDS:f", "SystemExit: 3"),
        ("needs_gone:f", "No module named 'needs_gone'"),
    ],
)
def test_function_that_cannot_be_loaded_is_one_sentence(
    tmp_path: Path, spec: str, message: str
) -> None:
    for name, text in {
        "FILE": REWARDS.replace("import beside", "").replace("beside.FACTOR", "1.0"),
        "BROKEN": "def f(:\n",
        "ENDS": "import sys\nsys.exit(3)\n",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
        spec = spec.replace(name, str(tmp_path / f"{name}.py"))
    with pytest.raises(TrainError, match=message) as caught:
        load_reward(spec, max_length=8)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("spec", ["math:absent", "no_such_module:f", ":f"])
def test_function_that_is_not_there_is_refused(spec: str) -> None:
    with pytest.raises(TrainError, match="cannot import the reward function"):
        load_function(spec)
    with pytest.raises(TrainError, match="is a float, no function"):
        load_function("math:pi")


def test_folder_that_is_not_there_is_no_hub_id() -> None:
    with pytest.raises(TrainError, match=r"there is no folder '\./gone' with a reward model"):
        load_reward("./gone", max_length=8)


def test_folder_that_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="cannot load the reward model"):
        load_reward(str(tmp_path), max_length=8)


def test_reward_model_scores_each_answer_as_it_would_alone(tmp_path: Path) -> None:
    """Texts and chats in one batch, of different lengths; each against the model's own forward."""
    base = save_policy(tmp_path / "base", seed=0, layers=1)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).eval()
    model.config.pad_token_id = model.config.eos_token_id
    model.save_pretrained(tmp_path / "judge")
    tokenizer = build_tokenizer()
    bos = tokenizer.convert_ids_to_tokens(0)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $0", special_tokens=[(bos, 0)]
    )
    tokenizer.save_pretrained(tmp_path / "judge")
    chat = [{"role": "user", "content": "the fox"}]
    said = [{"role": "assistant", "content": "jumps over"}]
    expected = []
    for text, is_chat in (
        (tokenizer.apply_chat_template(chat + said, tokenize=False), True),
        (f"the fox jumps over the lazy dog{tokenizer.eos_token}", False),
        (f"the dog{tokenizer.eos_token}", False),
    ):
        ids = tokenizer(text, add_special_tokens=not is_chat, return_tensors="pt")["input_ids"]
        expected.append(model(ids).logits.item())
    reward = load_reward(str(tmp_path / "judge"), max_length=99)
    answers = [said, " jumps over the lazy dog", " dog"]
    scores = reward.score(_answers([chat, "the fox", "the"], answers))
    assert scores == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 3) for score in scores}) == 3


class _Payload:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self._path,))


def test_a_pickled_reward_model_is_refused_and_not_opened(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    model = tmp_path / "model"
    LlamaConfig(num_labels=1, num_hidden_layers=1, vocab_size=16).save_pretrained(model)
    torch.save(_Payload(ran), model / "pytorch_model.bin")
    with pytest.raises(TrainError, match=r"pytorch_model\.bin.*--allow-unsafe-weights"):
        load_reward(str(model), max_length=8)
    # What loads it would refuse it too, had the file come in between.
    with pytest.raises(OSError, match="safetensors"):
        AutoModelForSequenceClassification.from_pretrained(model, **loading(False))
    assert not ran.exists()
    torch.load(model / "pytorch_model.bin", weights_only=False)
    assert ran.exists(), "the payload does nothing, so the test shows nothing"


def test_a_pickled_base_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(TrainError, match=r"base model .* pytorch_model\.bin"):
        check_safe(str(base), "base model", allow_unsafe_weights=False)
    check_safe(str(base), "base model", allow_unsafe_weights=True)
