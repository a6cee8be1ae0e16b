"""95 % intervals of means over prompts, and of the largest and smallest of several."""
