"""Mixes the demo policies in this process: one question under four weightings.

python examples/python_api.py
"""

from prefmix import Mixture
from prefmix.policies.demo import CHECKPOINTS

CONFIG = CHECKPOINTS.parent / "serve.yaml"
QUESTION = [{"role": "user", "content": "Review the Park Hotel."}]
WEIGHTINGS = {
    "concise": {"concise": 1},
    "polite": {"polite": 1},
    "half and half": {"concise": 1, "polite": 1},
    "all three": {"positive": 1, "concise": 1, "polite": 1},
}

with Mixture(config=CONFIG) as mix:
    print(mix)
    outputs = mix.chat(
        [QUESTION] * len(WEIGHTINGS),
        {"max_tokens": 80, "seed": 1},
        weights=list(WEIGHTINGS.values()),
        attribution=True,
    )
    scores = mix.score(QUESTION, [output.outputs[0] for output in outputs])

for name, output, logprobs in zip(WEIGHTINGS, outputs, scores, strict=True):
    answer = output.outputs[0]
    agreement = {
        policy: f"{figures['agreement']:.0%}"
        for policy, figures in answer.preference_attribution["policies"].items()
        if figures["agreement"] is not None
    }
    print(f"\n{name}: {answer.text}")
    print("  first choice of:", agreement)
    print("  log-probability:", {policy: round(value, 1) for policy, value in logprobs.items()})
