"""The start of vLLM on a mixture: checks, environment, vLLM's arguments, then vLLM itself."""
