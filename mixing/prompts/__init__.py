"""Prompts of the policies' own: heads of a request, rows of a step, and names of cached blocks."""
