"""Checking and reading checkpoints and adapters before the engine loads them."""
