"""Metrics, request log and audit log."""
