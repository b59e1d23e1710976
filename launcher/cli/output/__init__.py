"""What commands print: tables, a job's progress, a live page."""
