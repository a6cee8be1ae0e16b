"""Defines what a mixture is, and computes it in vLLM's engine.

  spec, simplex, wire, reference   the mixture itself: members, weights, keys, definition
  candidates                       the pick of one answer among several
  checkpoints/                     checks of policies and adapters before an engine starts
  engine/                          hooks of vLLM: plugin, config, admission, scheduler, workers
  models/                          the two composite models that vLLM runs
  batch/                           weights of the running requests, statistics, broken rows
  kernels/                         mixing of logits and LM heads, in torch and in Triton
  workarounds/                     one file per defect of vLLM 0.32

Importing this package loads neither vLLM nor torch. vLLM finds the engine's part through
prefmix.mixing.engine.plugin.

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
