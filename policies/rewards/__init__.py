"""Rewards of answers, from Python functions in TRL's form or from reward models."""
