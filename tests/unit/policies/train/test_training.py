"""Whole runs on tiny models, a few steps each; `make test-train`. Without the extra: skipped."""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Trainer

from prefmix.mixing.checkpoints.compatibility import check_members
from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.policies.train import TrainError
from prefmix.policies.train.settings import METHODS, build
from support.checkpoints.tiny_policies import save_policy

pytestmark = [
    pytest.mark.train,
    pytest.mark.skipif(
        importlib.util.find_spec("trl") is None, reason="needs the train extra: make setup-train"
    ),
    # Of TRL, PEFT and the rest, whose warnings are not ours to mend.
    pytest.mark.filterwarnings("ignore"),
]

TEXT = "the quick brown fox jumps over the lazy dog and the policies are mixed"
WORDS = TEXT.split()
Run = Callable[..., Path]
STAGES = ["reward-half-1", "reward-half-2", "split", "dpo", "reward-model", "policy"]
"""The stages of mixed-preference without --reward."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that a run sets for the libraries."""
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    monkeypatch.setattr(sys, "path", list(sys.path))  # a reward's file adds its folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(tmp_path_factory.mktemp("base"), seed=0, layers=1)


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Run:
    """run(method, output, **settings) trains on the same 12 pairs and returns the folder."""
    rows = [
        {
            "prompt": f"{WORDS[i]} {WORDS[i + 1]}",
            "chosen": f" {WORDS[i]}",
            "rejected": f" {WORDS[i + 1]} {' '.join(WORDS[: i + 1])}",
        }
        for i in range(12)
    ]
    answers = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in rows]
    _write(tmp_path / "pairs.jsonl", rows)
    _write(tmp_path / "sft.jsonl", answers)
    _write(tmp_path / "text.jsonl", [{"text": TEXT}])

    def run(method: str, output: str, **settings: Any) -> Path:
        from prefmix.policies.train.jobs import run as run_job

        few = {"steps": 5, "batch_pairs": 2, "save_steps": 2, "log_steps": 1}
        files = {"base": str(base), "data": tmp_path / "pairs.jsonl", "output": tmp_path / output}
        if method == "maximum-preference":
            files["sft_data"] = tmp_path / "sft.jsonl"
        if method == "mixed-preference":
            few |= {"online_steps": 4, "online_prompts": 2, "num_answers": 2, "max_new_tokens": 6}
            few["online_learning_rate"] = 1e-2
        values = {"learning_rate": 1e-2, **few, **files, **settings}
        return run_job(build(METHODS[method], values))

    return run


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _parameters(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("*.safetensors")
    return dict(load_file(path))


def _differ(first: Path, second: Path) -> list[str]:
    ours, theirs = _parameters(first), _parameters(second)
    assert ours.keys() == theirs.keys()
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


@contextmanager
def _killed_at(num_steps: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Interrupts the training inside it at the given step, counted over all stages."""
    seen = []
    training_step = Trainer.training_step

    def step(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        seen.append(None)
        if len(seen) == num_steps:
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", step)
        with pytest.raises(KeyboardInterrupt):
            yield


def length(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """A reward function: minus the length."""
    return [-float(len(completion)) for completion in completions]


@pytest.mark.parametrize("method", ["dpo", "maximum-preference"])
@pytest.mark.parametrize("rank", [0, 4])
def test_killed_run_resumes_to_the_same_result(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str, rank: int
) -> None:
    whole = run(method, "whole", lora_rank=rank)
    with _killed_at(4, monkeypatch):
        run(method, "killed", lora_rank=rank)
    assert not (tmp_path / "killed").exists()
    assert (tmp_path / "killed.stages/policy.checkpoints/checkpoint-2").exists()
    killed = run(method, "killed", lora_rank=rank)
    assert _differ(whole, killed) == []
    assert not (tmp_path / "killed.stages").exists()
    facts = [json.loads((f / "provenance.json").read_text())["stages"] for f in (whole, killed)]
    losses = [[entry["loss"] for entry in f["policy"]["losses"]] for f in facts]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 5


@pytest.mark.parametrize("method", METHODS)
def test_run_killed_in_a_later_pass_resumes(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str
) -> None:
    """A pass has three steps; the run is killed in the second pass, which has another order."""
    settings: dict[str, Any] = {"batch_pairs": 4, "steps": 7}
    if method == "mixed-preference":
        settings |= {"reward": f"{__name__}:length", "batch_pairs": 2, "online_steps": 7}
    whole = run(method, "whole", **settings)
    for num_steps in (6, 3 + 6) if method == "mixed-preference" else (6,):
        with _killed_at(num_steps, monkeypatch):
            run(method, "killed", **settings)
    assert list((tmp_path / "killed.stages/policy.checkpoints").glob("*-4"))
    assert _differ(whole, run(method, "killed", **settings)) == []


@pytest.mark.parametrize("method", METHODS)
def test_run_killed_before_its_policy_is_saved_resumes(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str
) -> None:
    """All steps are in a checkpoint when the run is killed; no step is left to make."""
    settings = {"lora_rank": 4} | ({"reward": f"{__name__}:length"} if "mixed" in method else {})

    def killed(*args: Any, final: bool, **kwargs: Any) -> None:
        if final:
            raise KeyboardInterrupt
        save(*args, final=final, **kwargs)

    from prefmix.policies.train import trainers

    whole = run(method, "whole", **settings)
    save = trainers.save_policy
    with monkeypatch.context() as patch:
        patch.setattr(trainers, "save_policy", killed)
        with pytest.raises(KeyboardInterrupt):
            run(method, "killed", **settings)
    assert _differ(whole, run(method, "killed", **settings)) == []
    facts = [
        json.loads((tmp_path / n / "provenance.json").read_text()) for n in ("whole", "killed")
    ]
    losses = [[entry["loss"] for entry in f["stages"]["policy"]["losses"]] for f in facts]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("rank", [0, 4])
def test_every_stage_of_mixed_preference_resumes(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rank: int
) -> None:
    """The run is killed in each stage, of 6, 5 and 4 steps; every second step is saved."""
    whole = run("mixed-preference", "whole", lora_rank=rank)
    # The second run still has 4 steps of the reward model to go, the third 3 of DPO.
    for num_steps in (4, 4 + 4, 3 + 3):
        with _killed_at(num_steps, monkeypatch):
            run("mixed-preference", "killed", lora_rank=rank)
    killed = run("mixed-preference", "killed", lora_rank=rank)
    assert _differ(whole, killed) == []
    stages = tmp_path / "killed.stages"
    for name in ("reward-half-1", "reward-half-2", "reward-model", "dpo"):
        assert _differ(tmp_path / "whole.stages" / name, stages / name) == []
    for name in ("scores.jsonl", "split.json"):
        assert (stages / "split" / name).read_text() == (
            tmp_path / "whole.stages/split" / name
        ).read_text()
    manifest = json.loads((stages / "manifest.json").read_text())
    assert list(manifest["stages"]) == STAGES
    assert manifest["stages"]["split"]["easy"] == 6
    assert _differ(stages / "dpo", killed), "the online stage trained"


def test_a_log_gets_one_line_a_stage(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    run("mixed-preference", "out")
    told, errors = capfd.readouterr()
    stages = [line.partition(": ")[0] for line in told.splitlines()]
    assert stages == STAGES
    assert "steps 5, loss 0." in told.splitlines()[3]
    assert errors == ""


def test_mixed_preference_of_adapters_takes_a_function(run: Run) -> None:
    folder = run("mixed-preference", "out", lora_rank=4, reward=f"{__name__}:length", quantile=0.25)
    tensors = _parameters(folder)
    assert all(".ref." not in name for name in tensors), "the reference is not part of the policy"
    assert len(tensors) == 2 * 7


def test_online_stage_asks_few_prompts_again(run: Run, tmp_path: Path) -> None:
    """One difficult pair, two prompts a step: all steps are made."""
    settings = {"reward": f"{__name__}:length", "threshold": 7.0, "online_steps": 3}
    run("mixed-preference", "out", **settings)
    stages = json.loads((tmp_path / "out.stages/manifest.json").read_text())["stages"]
    assert stages["split"]["difficult"] == 1
    assert [entry["step"] for entry in stages["policy"]["losses"]] == [1, 2, 3]


def test_policies_are_mixed_with_their_base(run: Run, base: Path) -> None:
    full = run("dpo", "full")
    merged = run("maximum-preference", "merged", lora_rank=4, merge=True)
    adapter = run("dpo", "adapter", lora_rank=4)
    policies = tuple(Policy(name=f.name, model=str(f)) for f in (full, merged))
    reference = Policy(name="base", model=str(base))
    assert check_members(MixtureSpec(policies=policies, reference=reference)).warnings == ()
    trunk = MixtureSpec(policies=(Policy(name="adapter", model=str(adapter)),), base=str(base))
    assert check_members(trunk).warnings == ()
    for folder in (full, merged, adapter):
        assert "prefmix serve" in (folder / "README.md").read_text()
        provenance = json.loads((folder / "provenance.json").read_text())
        assert provenance["settings"]["seed"] == 0
        assert provenance["data"]["pairs"]["rows"] == 12
        assert len(provenance["data"]["pairs"]["sha256"]) == 64
        assert {"torch", "transformers", "trl", "peft"} < provenance["versions"].keys()


def test_merged_checkpoint_is_base_plus_adapter(run: Run, base: Path) -> None:
    from peft import PeftModel

    adapter = run("dpo", "adapter", lora_rank=4)
    merged = AutoModelForCausalLM.from_pretrained(run("dpo", "merged", lora_rank=4, merge=True))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, merged(ids).logits, atol=1e-5)


def test_accumulated_steps_equal_one_large_batch(run: Run) -> None:
    rows = {"precision": "float32", "text_weight": 0.0}
    large = run("maximum-preference", "large", batch_pairs=4, **rows)
    small = run("maximum-preference", "small", batch_pairs=2, accumulate=2, **rows)
    ours, theirs = _parameters(large), _parameters(small)
    assert all(torch.allclose(ours[name], theirs[name], atol=2e-4) for name in ours)


def test_regulariser_holds_what_preference_alone_lets_go(run: Run, tmp_path: Path) -> None:
    """The SFT rows' log-probability ends higher with the term than without."""

    def last(folder: Path) -> float:
        stages = json.loads((folder / "provenance.json").read_text())["stages"]
        return float(stages["policy"]["losses"][-1]["sft_logprob"])

    text = {"text_data": tmp_path / "text.jsonl", "steps": 8}
    held = run("maximum-preference", "held", sft_weight=0.5, **text)
    free = run("maximum-preference", "free", sft_weight=0.0, **text)
    assert last(held) > last(free) + 1


@pytest.mark.parametrize("value", ["nan", "raise"])
def test_reward_that_fails_online_leaves_no_policy(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str
) -> None:
    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        if (tmp_path / "out.stages/dpo").exists():
            if value == "raise":
                raise RuntimeError("no judge")
            return [float("nan")] * len(prompts)
        return length(prompts, completions)

    monkeypatch.setattr("prefmix.policies.rewards.loading.load_function", lambda spec: reward)
    with pytest.raises(TrainError, match="an answer drawn for the prompt '"):
        run("mixed-preference", "out", reward="judge:score")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["nan", "raise"])
def test_reward_that_fails_on_a_pair_names_it_and_leaves_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str
) -> None:
    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        if value == "raise" and "fox jumps" in prompts:
            raise RuntimeError("no judge")
        rewards = length(prompts, completions)
        return [
            float("nan") if prompt == "fox jumps" else reward
            for prompt, reward in zip(prompts, rewards, strict=True)
        ]

    monkeypatch.setattr("prefmix.policies.rewards.loading.load_function", lambda spec: reward)
    with pytest.raises(TrainError, match=r"pairs\.jsonl line 4, 'chosen': the reward"):
        run("mixed-preference", "out", reward="judge:score")
    assert not list(tmp_path.glob("out*"))


def test_bad_answer_to_stay_close_to_is_named_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    rows = [{"prompt": prompt, "completion": " jumps"} for prompt in ("the fox", 3 * TEXT)]
    _write(tmp_path / "long.jsonl", rows)
    with pytest.raises(TrainError, match=r"long\.jsonl line 2: the prompt has"):
        run("maximum-preference", "out", sft_data=tmp_path / "long.jsonl", max_length=40)
    assert not list(tmp_path.glob("out*"))


def test_datasets_folder_is_read_like_a_file(run: Run, tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    DatasetDict(train=Dataset.from_list(rows)).save_to_disk(str(tmp_path / "folder"))
    file = run("dpo", "file")
    folder = run("dpo", "folder-policy", data=tmp_path / "folder")
    assert _differ(file, folder) == []

    Dataset.from_list([*rows, rows[0] | {"chosen": ""}]).save_to_disk(str(tmp_path / "bad"))
    with pytest.raises(TrainError, match="bad row 13: 'chosen' is empty"):
        run("dpo", "bad-policy", data=tmp_path / "bad")
    DatasetDict(test=Dataset.from_list(rows)).save_to_disk(str(tmp_path / "split"))
    with pytest.raises(TrainError, match="has the splits test; expected 'train'"):
        run("dpo", "bad-policy", data=tmp_path / "split")
    assert not list(tmp_path.glob("bad-policy*"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base": "no/such/folder"}, "cannot read the base model"),
        ({"base": "./gone"}, "base model './gone' .there is no such folder."),
        ({"data": Path("absent.jsonl")}, "no file or folder absent.jsonl"),
        ({"reward": "math:absent"}, "cannot import the reward function"),
        ({"max_length": 2}, "pairs.jsonl line 1: the prompt has"),
    ],
)
def test_bad_start_is_named_and_leaves_nothing(
    run: Run, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainError, match=message):
        run("mixed-preference", "out", **settings)
    assert not list(tmp_path.glob("out*"))


def test_no_reward_model_judges_pairs_that_it_was_trained_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs of one prompt are in one half; the third model, of all pairs, judges new answers."""
    from prefmix.policies.train import jobs

    trained: dict[str, set[str]] = {}
    judged: dict[str, set[str]] = {}

    class Known:
        def __init__(self, folder: str) -> None:
            self.stage = Path(folder).name

        def score(self, answers: Any) -> list[float]:
            judged.setdefault(self.stage, set()).update(answers.prompts)
            assert all(ids[-1] == 1 for ids in answers.completion_ids), "an answer has no end"
            return [float(len(answer)) for answer in answers.answers]

    def train(_: Any, __: Any, data: Any, folder: Path, ___: Path) -> dict[str, Any]:
        trained[folder.name.removesuffix(".partial")] = {r["prompt"] for r in data["pairs"].rows}
        return {"pairs": len(data["pairs"])}

    monkeypatch.setattr(jobs, "train_reward_model", train)
    monkeypatch.setattr(jobs, "load_reward", lambda folder, **_: Known(folder))
    monkeypatch.setattr(jobs, "train_online", lambda *_: {})
    monkeypatch.setattr(jobs, "write_cards", lambda *_: None)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    twice = [row | {"chosen": f"{row['chosen']} fox"} for row in rows]
    _write(tmp_path / "pairs.jsonl", rows + twice)
    run("mixed-preference", "out")
    first, second = trained["reward-half-1"], trained["reward-half-2"]
    everything = {row["prompt"] for row in rows}
    assert first & second == set()
    assert first | second == everything == trained["reward-model"]
    assert judged == {"reward-half-1": second, "reward-half-2": first}


@pytest.mark.parametrize("method", ["dpo", "maximum-preference", "mixed-preference"])
def test_losses_of_held_out_pairs_are_reported_and_change_nothing(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    _write(tmp_path / "held.jsonl", rows[:4])
    held = run(method, "held", eval_data=tmp_path / "held.jsonl", eval_steps=2)
    told = capsys.readouterr().out
    provenance = json.loads((held / "provenance.json").read_text())
    stages = [s for s in provenance["stages"].values() if "evaluations" in s]
    assert len(stages) == (4 if method == "mixed-preference" else 1)
    for stage in stages:
        last = stage["losses"][-1]["step"]
        assert [each["step"] for each in stage["evaluations"]] == sorted({*range(2, last, 2), last})
        assert all(each["eval_loss"] == each["eval_loss"] for each in stage["evaluations"])
        assert not any("eval" in name for each in stage["losses"] for name in each)
    assert provenance["data"]["evaluation"]["rows"] == 4
    assert told.count("held out: loss") == len(stages)
    assert "accuracy" in told
    assert "4 rows" in (held / "README.md").read_text()
    if method != "mixed-preference":
        assert _differ(held, run(method, "plain")) == []


def test_held_out_loss_is_that_of_the_pairs(run: Run, tmp_path: Path) -> None:
    """Held out are the training pairs themselves, all in one batch: at step 1 DPO's loss is ln 2,
    and evaluation after the step sees the trained policy."""
    pairs = tmp_path / "pairs.jsonl"
    settings = {"batch_pairs": 12, "eval_steps": 1, "steps": 3, "eval_data": pairs}
    folder = run("dpo", "out", **settings)
    stage = json.loads((folder / "provenance.json").read_text())["stages"]["policy"]
    losses = [each["loss"] for each in stage["losses"]]
    evaluated = [each["eval_loss"] for each in stage["evaluations"]]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)
    # The loss of a step is measured before it, the evaluation after it.
    assert evaluated[:2] == pytest.approx(losses[1:3], abs=1e-4)


def test_share_of_the_pairs_is_held_out_by_prompt(run: Run, tmp_path: Path) -> None:
    folder = run("dpo", "out", eval_share=0.25)
    data = json.loads((folder / "provenance.json").read_text())["data"]
    assert (data["pairs"]["rows"], data["evaluation"]["rows"]) == (9, 3)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    _write(tmp_path / "pairs.jsonl", [row | {"prompt": "the fox"} for row in rows])
    with pytest.raises(TrainError, match=r"eval_share is 0.25, which leaves 0 of 12 pairs"):
        run("dpo", "other", eval_share=0.25)


def test_rewards_get_the_columns_tokens_and_loggers(run: Run, tmp_path: Path) -> None:
    """In the split and online, as they are: a column may hold several types, and None."""
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    truths = {row["prompt"]: [i, str(i), None, {"a": [i]}][i % 4] for i, row in enumerate(rows)}
    rows = [row | {"truth": truths[row["prompt"]]} for row in rows]
    _write(tmp_path / "pairs.jsonl", rows)
    (tmp_path / "judge.py").write_text(
        "seen = []\n"
        "async def score(prompts, completions, completion_ids, truth, log_metric=None, **rest):\n"
        "    seen.append((prompts, completions, completion_ids, truth, log_metric, rest))\n"
        "    if log_metric: log_metric('longest', max(map(len, completions)))\n"
        "    return [None if log_metric and i == 0 else float(len(c))\n"
        "            for i, c in enumerate(completions)]\n"
    )
    folder = run("mixed-preference", "out", reward=f"{tmp_path / 'judge.py'}:score")
    seen = next(m for name, m in sys.modules.items() if name.startswith("_reward_judge_")).seen
    assert [len(call[0]) for call in seen] == [12, 12, *[4] * 4]
    for prompts, completions, completion_ids, truth, log_metric, rest in seen:
        assert truth == [truths[prompt] for prompt in prompts]
        assert all(completion_ids), completions
        assert (log_metric is None) == ("trainer_state" not in rest)
    losses = json.loads((folder / "provenance.json").read_text())["stages"]["policy"]["losses"]
    assert "longest" in losses[0]


def test_reward_that_does_not_apply_to_a_pair_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "some.py").write_text(
        "def score(prompts, **_): return [None if p == 'fox jumps' else 1.0 for p in prompts]\n"
    )
    with pytest.raises(
        TrainError, match=r"pairs\.jsonl line 4, 'chosen': the reward does not apply"
    ):
        run("mixed-preference", "out", reward=f"{tmp_path / 'some.py'}:score")


def test_losses_are_passed_on_to_a_tracker(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' own callback writes them, through the package that the user has installed."""
    written: list[tuple[str, float, int]] = []

    class SummaryWriter:
        def __init__(self, log_dir: str) -> None:
            self.log_dir = log_dir

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def add_text(self, *_: Any) -> None: ...

        def add_hparams(self, *_: Any, **__: Any) -> None: ...

        def flush(self) -> None: ...

        def close(self) -> None: ...

    import importlib.machinery
    import types

    package = types.ModuleType("tensorboardX")
    package.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    package.__spec__ = importlib.machinery.ModuleSpec("tensorboardX", None)
    monkeypatch.setitem(sys.modules, "tensorboardX", package)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    run("dpo", "out", report_to="tensorboard", eval_share=0.25)
    names = {name for name, _, _ in written}
    assert {"train/loss", "eval/loss"} <= names
    with pytest.raises(TrainError, match="package trackio is not installed; pip install trackio"):
        run("dpo", "other", report_to="tensorboard,trackio")
