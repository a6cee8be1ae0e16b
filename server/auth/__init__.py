"""Who may call which route: access levels, API keys, admin tokens."""
