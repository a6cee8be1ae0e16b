"""The fit of the served mixture to rewards: the gains that its weights bring."""
