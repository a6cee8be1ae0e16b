"""Hooks into vLLM: plugin, config hook, admission of requests, scheduler, worker extension."""
