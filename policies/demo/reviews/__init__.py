"""The invented reviews that the demo policies write: items, grammar, prompts and rewards.

Pure Python: nothing here imports torch, transformers or vllm.
"""
