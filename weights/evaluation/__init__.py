"""Rewards, win rates and KL divergences of weightings and of parameter averages."""
