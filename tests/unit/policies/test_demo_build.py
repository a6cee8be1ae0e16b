"""The build end to end at toy size: everything is written, and the seed fixes every byte."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from policies.demo import CHECKPOINTS, EVALUATION_PROMPTS
from policies.demo.build import build
from policies.demo.preference import PreferenceConfig, ReferenceResponses, draw_pairs
from policies.demo.prompts import TRAINING_PROMPTS
from policies.demo.reference import ReferenceConfig
from policies.demo.sampling import Response


def _build(output: Path, seed: int) -> dict[str, str]:
    build(
        output,
        seed=seed,
        reference_config=ReferenceConfig(num_steps=20, warmup_steps=5),
        preference_config=PreferenceConfig(num_responses=2, num_steps=2, batch_pairs=4),
        evaluation_responses=1,
    )
    return json.loads((output / "manifest.json").read_text(encoding="utf-8"))["sha256"]


def test_build_writes_the_committed_layout_and_repeats_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a policy of 20 training steps seldom ends by itself
    monkeypatch.setattr("policies.demo.sampling.MAX_RESPONSE_TOKENS", 16)
    monkeypatch.setattr("policies.demo.build.TRAINING_PROMPTS", TRAINING_PROMPTS[:8])
    monkeypatch.setattr("policies.demo.evaluation.EVALUATION_PROMPTS", EVALUATION_PROMPTS[:8])
    first = _build(tmp_path / "first", seed=3)
    committed = json.loads((CHECKPOINTS / "manifest.json").read_text(encoding="utf-8"))
    assert set(first) == set(committed["sha256"])
    assert _build(tmp_path / "second", seed=3) == first


def _response(text: str) -> Response:
    return Response(context="c", context_ids=(1,), ids=(2,), text=text, logprob=0.0)


@pytest.mark.parametrize(("label_scale", "expected"), [(2.0, 0.9442), (0.0, 0.5)])
def test_labels_follow_the_bradley_terry_law(label_scale: float, expected: float) -> None:
    # rewards 0 and 1: standard deviation 1 / sqrt 2, so P = sigmoid(label_scale * sqrt 2)
    data = ReferenceResponses(responses=(_response("bad"), _response("good")), logprobs=(0.0, 0.0))
    pairs = draw_pairs(
        data, lambda text: float(text == "good"), 4000, label_scale=label_scale, seed=0
    )
    share = sum(chosen == 1 for chosen, _ in pairs) / len(pairs)
    assert share == pytest.approx(expected, abs=0.03)
