"""The command line: each command parses, makes one call and prints. See ``launcher.cli.app``."""

from launcher.cli.app import main

__all__ = ["main"]
