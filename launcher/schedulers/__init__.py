"""Schedulers, which give a job its hosts: this host, an inventory over ssh, Slurm, Kubernetes, or one from a package.

base      the one interface, ``Scheduler``, and the functions that several share
registry  finds a scheduler by its name
local, ssh, slurm, kubernetes    the four that ``--scheduler`` offers; no other room imports them or knows their names
given     hosts on which somebody else starts the agents
registration, granted            the report of a host on itself, and the cards that it was given
"""
