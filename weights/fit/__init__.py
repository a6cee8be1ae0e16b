"""Fitting weights: objective, mirror descent, certificate, score table."""
