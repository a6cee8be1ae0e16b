"""Making the single-objective policies that the server mixes."""
