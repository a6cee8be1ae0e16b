"""Prompts of the policies' own: what a request asks for, and how it becomes tokens."""
