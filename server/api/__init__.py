"""What clients call: the OpenAI-compatible routes, and how a request gets its weights."""
