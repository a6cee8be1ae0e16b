"""Metrics, the request log, the audit log and the report of policies that fail."""
