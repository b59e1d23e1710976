"""Operations on a job: prepare, submit, follow, stop, resume."""
