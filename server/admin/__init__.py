"""Changing weights while serving: the admin routes and the commit over all API processes."""
