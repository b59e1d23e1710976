"""What any program could use: whole writes, processes, ports, signals, templates."""
