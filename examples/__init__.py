"""Whole stories over all rooms: what a user would do, measured. Nothing imports from here."""
