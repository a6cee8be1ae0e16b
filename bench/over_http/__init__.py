"""`prefmix bench http`: the servers that are compared, the load on them, and the figures."""
