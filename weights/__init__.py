"""Weights of mixtures: fitted offline, evaluated, and kept in the store that the server reloads.

`engines` draw and score responses, `fit` finds weights, `evaluation` measures what weights earn,
`report` writes pages, and `store` keeps profiles.
"""
