"""The tour behind `make demo`: serves the demo policies, asks them and prints the table."""
