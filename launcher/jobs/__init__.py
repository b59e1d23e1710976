"""One job's folder: its paths, its record, the store that finds jobs, what ranks report, logs, the verdict."""

from launcher.jobs.paths import JobPaths as JobPaths
from launcher.jobs.paths import is_job_folder as is_job_folder
from launcher.jobs.record import CANCELLED as CANCELLED
from launcher.jobs.record import FAILED as FAILED
from launcher.jobs.record import FINAL_STATES as FINAL_STATES
from launcher.jobs.record import LOST as LOST
from launcher.jobs.record import PLANNED as PLANNED
from launcher.jobs.record import REQUEUED as REQUEUED
from launcher.jobs.record import RUNNING as RUNNING
from launcher.jobs.record import STARTING as STARTING
from launcher.jobs.record import STATES as STATES
from launcher.jobs.record import STOPPING as STOPPING
from launcher.jobs.record import SUCCEEDED as SUCCEEDED
from launcher.jobs.record import UNREADABLE as UNREADABLE
from launcher.jobs.record import JobRecord as JobRecord
from launcher.jobs.record import first_of_last_stage as first_of_last_stage
from launcher.jobs.record import known_keys as known_keys
from launcher.jobs.record import loss_rank as loss_rank
from launcher.jobs.record import next_attempt as next_attempt
from launcher.jobs.record import now as now
from launcher.jobs.record import planned_steps as planned_steps
from launcher.jobs.record import read_record as read_record
from launcher.jobs.record import step_to_stop_at as step_to_stop_at
from launcher.jobs.record import write_record as write_record
from launcher.jobs.store import JobStore as JobStore
from launcher.jobs.store import select_jobs as select_jobs
