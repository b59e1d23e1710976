"""A job on several hosts: one leader, one agent per host, and files in the job's folder between them. No sockets.

leader          in the supervisor: starts agents, checks hosts, sends commands, notices hosts that are lost
leader_process  the leader where a scheduler starts it: a batch script's node, or the first pod
agent           on each host: reports the host, starts its ranks (as the supervisor of a job on one host does), obeys
leader_link     the agent's side of the exchange, and the documents that are exchanged
status_file     a small document that one process rewrites in place and others read: heartbeats, commands, progress
rendezvous      the meeting point of ranks: addresses, port, interfaces, the rank table of the cards found
host_verdicts   verdicts on hosts: one that was lost, one that cannot take part, the leader that is gone

Messages go through files that exist before an agent starts, are rewritten in place, and are opened anew for each
reading: NFS shows a file opened anew as it was last closed, but may hide new names for a minute.
"""
