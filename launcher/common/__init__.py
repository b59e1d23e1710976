"""Helpers for any program: whole writes, processes, ports, signals, templates."""
