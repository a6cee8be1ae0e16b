"""`prefmix policies`."""
