"""Workarounds for defects of vLLM 0.32, one file each; each says when it can be deleted."""
