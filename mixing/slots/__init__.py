"""Slots of a shared trunk: members whose adapters come and go while the engine serves."""
