"""The mixing console: its routes, and its page in `page/`."""
