"""The start of a server: checks, environment, vLLM's arguments, then vLLM itself."""
