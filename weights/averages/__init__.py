"""Parameter averages ("rewarded soups"): one model whose parameters are a weighted sum of others'.

For policies that were tuned from a common start, a parameter average competes with a mixture: one
model to run instead of K, but one weighting instead of one a request. Of adapters, the updates are
averaged: a weighted sum of products B A is one product again, of the factors side by side.
Source: Rame et al. 2023, Rewarded Soups (arXiv 2306.04488).
"""
