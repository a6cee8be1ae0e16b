"""What a mixture is and how the engine computes it.

Importing this package needs neither vLLM nor Triton: `spec`, `simplex` and `wire` are pure, and the
engine's modules (`model`, `request_weights`, `loading`, `admission`, `scheduling`) are imported by
vLLM itself through `plugin`.

Glossary:
  policy      a language model as a next-token distribution.
  reference   the policy the others were aligned from.
  member      a policy or the reference; M members are loaded.
  mixture     the log-linear (geometric) combination softmax(sum_k w_k z_k), never an average of
              probabilities.
  weights     the coefficients w of the mixture, one per member, summing to 1.
  preferences what a user asks for, before it is resolved to weights.
  profile     a named, stored weight vector.
  parameters  what a network learned (vLLM's own `load_weights` keeps its spelling).
"""

from prefmix.mixing.simplex import WeightsError, check_weights, weights_from_preferences
from prefmix.mixing.spec import MixtureSpec, Policy, SpecError, WeightSpace

__all__ = [
    "MixtureSpec",
    "Policy",
    "SpecError",
    "WeightSpace",
    "WeightsError",
    "check_weights",
    "weights_from_preferences",
]
