"""Sweeps: the same run with other settings, trial by trial, each of them an ordinary job.

space    --grid and --random -> the settings of each trial
record   a sweep's folder, jobs/sweeps/ID: its one file, and finding it
pruning  which trial is hopeless
runner   starts trials, watches them, stops hopeless ones; a process of its own that outlives the terminal
"""
