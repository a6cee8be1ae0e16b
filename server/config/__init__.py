"""The configuration of a server, checked, and the settings that its processes share."""
