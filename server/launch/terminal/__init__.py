"""The lines that `prefmix serve` prints: the ready table, or why it did not start."""
