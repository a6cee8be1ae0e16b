"""OpenAI-shaped errors, route class, headers and the OpenAPI page."""
