"""The OpenAI-compatible routes, and a request's way from its weights to its answer."""
