"""Checks and reads checkpoints and adapters before the engine loads them."""
