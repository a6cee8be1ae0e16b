"""Profiles (named weight vectors), edits of them, and the file that keeps them."""
