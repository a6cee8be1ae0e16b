"""How much work is taken on, for how long, and how the server stops."""
