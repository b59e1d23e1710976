"""What tests share: hosts and schedulers made for a test, checkpoints, tiny models, supervised jobs."""
