"""Training of single-objective policies from preference pairs: `prefmix train METHOD`.

  dpo                 Direct Preference Optimization, the baseline, with TRL's own trainer.
  maximum-preference  preference as reward, off-policy (arXiv 2312.16430): no reward model, and no
                      reference model beside the policy.
  mixed-preference    a reward model splits the pairs: DPO on the clear pairs, then reinforcement
                      learning on the prompts of the other pairs (arXiv 2403.19443).

Needs the `train` extra (`make setup-train`). Importing this package, `settings`, `splitter` and
`stages` needs nothing beyond the standard library; nor does `prefmix.policies.data.pairs`.
"""

from prefmix.policies.errors import SettingsError, TrainError

__all__ = ["SettingsError", "TrainError"]
