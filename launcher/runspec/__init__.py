"""The run spec, the user's request: parsed once, every problem reported at once with its place.

A spec is a YAML file that users own. Relative paths in it are relative to the working folder.
"""
