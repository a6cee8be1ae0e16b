"""`prefmix average` and `prefmix export`: one model at the weights of a profile."""
