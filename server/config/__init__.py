"""The configuration file and flags as checked values, and the settings shared by processes."""
