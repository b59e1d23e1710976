"""Planning: a run spec and a cluster give a launch plan with every file, argv and variable. Nothing is written."""
