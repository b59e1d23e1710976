"""Checks if this host can run a job: each gives pass, warn or fail, and the command to type for a warn or fail.

checks    all of them in their order. ``cheap_checks`` is for submit's preflight: it reads files and runs no program.
          ``all_checks`` also asks npu-smi and hccn_tool. Over several hosts each runs ``host_checks`` (``serving``),
          and ``fleet`` compares what they say
findings  what a check says, and what a job needs
job       the needs of a run spec
"""
