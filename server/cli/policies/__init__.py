"""`prefmix policies`: the policies of a running server, listed, added and removed."""
