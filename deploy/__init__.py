"""What it takes to run prefmix elsewhere; see docs/deploying.md."""
