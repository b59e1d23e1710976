"""From a run spec and a cluster to a launch plan: every file, argv and environment variable. Nothing is touched."""
