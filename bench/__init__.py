"""`prefmix bench`: the cost of mixing, measured side by side with the alternatives.

Every bench forms its ratios within one run: the contestants take turns round by round, so that a
slow moment of a shared machine affects all of them, and a ratio is the median over the rounds.
docs/performance.md has measured figures, with their commands.
"""
