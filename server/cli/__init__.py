"""The commands of `prefmix` but for its benches: their flags and output."""
