"""The two layouts as vLLM models: full checkpoints, and a shared trunk with LoRA adapters."""
