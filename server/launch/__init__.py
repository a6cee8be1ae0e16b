"""Starting vLLM with a mixture: checks first, then the environment, then the engine."""
