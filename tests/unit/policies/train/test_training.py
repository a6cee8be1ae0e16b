"""Whole runs on tiny models, a few steps each; `make test-train`. Without the extra: skipped."""

import importlib.util
import json
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


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    for name in ("reward-model", "dpo"):
        assert _differ(tmp_path / "whole.stages" / name, stages / name) == []
    for name in ("scores.jsonl", "split.json"):
        assert (stages / "split" / name).read_text() == (
            tmp_path / "whole.stages/split" / name
        ).read_text()
    manifest = json.loads((stages / "manifest.json").read_text())
    assert list(manifest["stages"]) == ["reward-model", "split", "dpo", "policy"]
    assert manifest["stages"]["split"]["easy"] == 6
    assert _differ(stages / "dpo", killed), "the online stage trained"


def test_a_log_gets_one_line_a_stage(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    run("mixed-preference", "out")
    told, errors = capfd.readouterr()
    stages = [line.partition(": ")[0] for line in told.splitlines()]
    assert stages == ["reward-model", "split", "dpo", "policy"]
    assert "steps 5, loss 0." in told.splitlines()[2]
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
            return [float("nan")]
        return length(prompts, completions)

    monkeypatch.setattr("prefmix.policies.train.rewards.load_function", lambda spec: reward)
    with pytest.raises(TrainError, match="an answer drawn for the prompt '"):
        run("mixed-preference", "out", reward="judge:score")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["nan", "raise"])
def test_reward_that_fails_on_a_pair_names_it_and_leaves_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str
) -> None:
    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        if prompts != ["fox jumps"]:
            return length(prompts, completions)
        if value == "raise":
            raise RuntimeError("no judge")
        return [float("nan")]

    monkeypatch.setattr("prefmix.policies.train.rewards.load_function", lambda spec: reward)
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
