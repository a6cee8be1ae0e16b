"""Hooks into vLLM: plugin, admission of requests, scheduler, worker extension."""
