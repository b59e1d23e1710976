"""A job on several hosts: one leader, one agent a host, and files in the job's folder between them. No sockets.

slate     a small document that one process rewrites in place and others read: signs of life, orders, progress
agent     on each host: reports the host, starts its ranks (as the supervisor of a job on one host does), obeys orders
lead      in the supervisor: starts agents, checks hosts, gives orders, notices hosts that are lost, judges
register  what a host says of itself, and what all hosts together must agree in
rendezvous  where ranks meet: addresses, port, interfaces, the rank table of what was found

What an agent needs goes through files that exist before it starts and are rewritten in place, and are opened anew for
each reading: NFS gives a file opened anew as it was last closed, but may hide new names for a minute.
"""
