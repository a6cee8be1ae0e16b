"""The commands `prefmix serve`, `fit`, `eval`, `train` and `weights`: their flags and output."""
