"""Where a job runs: on this host, on hosts reached by ssh, under Slurm, or on Kubernetes. Schedulers are theirs."""
