"""The worker, the program of every rank and the only part that trains."""
