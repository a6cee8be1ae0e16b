"""Weight changes while serving: the admin routes, and the commit in all API processes."""
