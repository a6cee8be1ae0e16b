"""The build end to end at toy size: everything is written, and the seed fixes every byte."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from prefmix.policies.data.pairs import ANSWER_FIELDS, PAIR_FIELDS, read_rows
from prefmix.policies.demo import CHECKPOINTS
from prefmix.policies.demo.build import build
from prefmix.policies.demo.training.preference import draw_pairs, sft_rows, write_rows
from prefmix.policies.demo.training.recipes import RECIPES
from prefmix.policies.demo.training.reference import ReferenceConfig
from prefmix.policies.demo.training.sampling import Response
from prefmix.policies.demo.training.tokenizer import chat_text


def _build(output: Path, seed: int) -> dict[str, str]:
    build(
        output,
        seed=seed,
        reference_config=ReferenceConfig(num_steps=20, warmup_steps=5),
        recipes={name: recipe.shortened(60) for name, recipe in RECIPES.items()},
        num_responses=4,
        evaluation_responses=1,
    )
    return json.loads((output / "manifest.json").read_text(encoding="utf-8"))["sha256"]


@pytest.mark.train
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="make setup-train")
@pytest.mark.filterwarnings("ignore")  # of TRL and PEFT
def test_build_writes_the_committed_layout_and_repeats_itself(
    tmp_path: Path, shortened: Callable[[str], None]
) -> None:
    shortened("prefmix.policies.demo.build")
    first = _build(tmp_path / "first", seed=3)
    committed = json.loads((CHECKPOINTS / "manifest.json").read_text(encoding="utf-8"))
    assert set(first) == set(committed["sha256"])
    assert _build(tmp_path / "second", seed=3) == first


def _response(text: str, context: str = "c") -> Response:
    return Response(context=context, context_ids=(1,), ids=(2,), text=text, logprob=0.0)


@pytest.mark.parametrize(("label_scale", "expected"), [(2.0, 0.9442), (0.0, 0.5)])
def test_labels_follow_the_bradley_terry_law(label_scale: float, expected: float) -> None:
    # rewards 0 and 1: standard deviation 1 / sqrt 2, so P = sigmoid(label_scale * sqrt 2)
    responses = [_response("bad"), _response("good")]
    pairs = draw_pairs(
        responses, lambda text: float(text == "good"), 4000, label_scale=label_scale, seed=0
    )
    share = sum(pair["chosen"] == " good" for pair in pairs) / len(pairs)
    assert share == pytest.approx(expected, abs=0.03)


def test_pairs_are_what_the_train_command_accepts(tmp_path: Path) -> None:
    """No pair of equal answers, no empty one, and chat answers follow the markup at once."""
    texts = ["short", "short", "", "rather longer"]
    chat = chat_text("Hello.")
    responses = [_response(text, context) for context in ("Hello.", chat) for text in texts]
    pairs = draw_pairs(responses, lambda text: float(len(text)), 200, seed=0)
    write_rows(tmp_path / "pairs.jsonl", pairs)
    rows = read_rows(tmp_path / "pairs.jsonl", PAIR_FIELDS)
    assert len(rows) == 200
    starts = {(row["prompt"] == chat, str(row["chosen"])[0] == " ") for row in rows.rows}
    assert starts == {(True, False), (False, True)}
    write_rows(tmp_path / "sft.jsonl", sft_rows(responses))
    assert len(read_rows(tmp_path / "sft.jsonl", ANSWER_FIELDS)) == 6
