"""Schedulers, which give a job its hosts: this host, an inventory over ssh, Slurm, Kubernetes, or what a package adds.

base      the one interface, ``Scheduler``, and what several share
registry  finds a scheduler by its name
local, ssh, slurm, kubernetes    the four that ``--scheduler`` offers; no other room imports them or knows their names
given     hosts on which somebody else starts the agents
registration, granted            what a host reports of itself, and which cards it was given
"""
