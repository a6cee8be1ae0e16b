"""`prefmix bench`: what mixing costs beside what one would run without it, measured side by side.

Every bench forms its ratios inside one run: the contestants take turns round by round, so that a
slow moment of a shared machine hits all of them, and a ratio is the median over the rounds.
Figures that were measured, with their commands, are in docs/performance.md.
"""
