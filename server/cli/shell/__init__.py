"""The commands of `prefmix`, their manual and completion; standard streams, signals and a pager."""
