"""Policies that come and go: their names, the slots of the engines, the folder they come from."""
