"""Limits on load: admission control, request bodies, deadlines, slow clients, drain, readiness."""
