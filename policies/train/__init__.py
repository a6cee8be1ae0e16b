"""Training of single-objective policies from preference pairs: `prefmix train METHOD`.

  dpo                 Direct Preference Optimization, the baseline, with TRL's own trainer.
  maximum-preference  preference as reward, off-policy (arXiv 2312.16430): no reward model, and no
                      reference model beside the policy.
  mixed-preference    a reward model splits the pairs: DPO on the clear pairs, then reinforcement
                      learning on the prompts of the other pairs (arXiv 2403.19443).

Needs the `train` extra (`make setup-train`). Importing this package, `settings`, `pairs`,
`splitter` and `stages` needs nothing beyond the standard library.
"""


class TrainError(ValueError):
    """Data, a reward function or a base model that training cannot use; one sentence."""


class SettingsError(TrainError):
    """A setting that is unknown, missing or out of range."""


__all__ = ["SettingsError", "TrainError"]
