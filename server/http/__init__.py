"""HTTP basics of all routes: OpenAI-shaped errors, the route class, headers, the OpenAPI page."""
