"""What every rank runs. The only part that trains."""
