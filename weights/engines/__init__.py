"""Engines that draw and score responses: vLLM in this process, or a running server."""
