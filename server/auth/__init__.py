"""Access control: the level of each route, API keys, admin tokens."""
