"""Training single-objective policies from preference pairs: `prefmix train METHOD`.

  dpo                 Direct Preference Optimization, the baseline: TRL's trainer as it is.
  maximum-preference  preference as reward, off-policy (arXiv 2312.16430): no reward model, and no
                      reference model beside the policy.
  mixed-preference    a reward model splits the pairs: DPO on the clear ones, then reinforcement
                      learning on the prompts of the others (arXiv 2403.19443).

Needs the `train` extra (`make setup-train`). Importing this package, `settings`, `pairs`,
`splitter` and `stages` needs nothing beyond the standard library.
"""


class TrainError(ValueError):
    """Data, a reward function or a base model that cannot be trained with. One sentence."""


class SettingsError(TrainError):
    """A setting that does not exist, is missing or has no meaning."""


__all__ = ["SettingsError", "TrainError"]
