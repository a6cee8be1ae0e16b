"""`preference_candidates`: n answers drawn, one picked, whose law is nearer to the product of whole
sequences (prefmix.mixing.candidates)."""
