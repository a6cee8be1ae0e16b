"""The commands of `prefmix`, their manual, and their completion in a shell."""
