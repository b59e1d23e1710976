"""Ranks below an engine before they report: found by the variables that the engine sets in their environment.

msrun and mpirun start ranks themselves. Only they know of a rank that ends before its first event: msrun then keeps
waiting for its scheduler, and mpirun ends the other ranks, which look as if they had failed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from launcher.common.processes import ProcessId, children, environment_of, program_of
from launcher.engines.base import Told
from launcher.supervise.rank_states import SCHEDULER

# The variable that names a rank in its process, by engine.
_RANK = {"msrun": "RANK_ID", "mpirun": "OMPI_COMM_WORLD_RANK"}

Who = int | str


class EarlyRanks:
    """The ranks ``ranks`` (and msrun's scheduler, if ``scheduler``) below the engine, each yielded once."""

    def __init__(self, engine: str, process: ProcessId, ranks: Collection[int], *, scheduler: bool) -> None:
        self._variable, self._process = _RANK[engine], process
        # A child that has not called exec yet still shows this environment.
        self._own = environment_of(process.pid)
        self._expected: list[Who] = [*([SCHEDULER] if scheduler else []), *ranks]
        self._known: dict[int, Who] = {}

    @property
    def missing(self) -> list[Who]:
        """Return the ranks and scheduler not found yet, in the order in which the engine starts them."""
        known = set(self._known.values())
        return [who for who in self._expected if who not in known]

    def look(self) -> Iterator[tuple[Who, ProcessId]]:
        """Yield processes that did not exist, or were not recognisable, at the last look."""
        unknown: list[ProcessId] = []
        for process in self._below(self._process):
            who = self._who(process)
            if who is None:
                unknown.append(process)
            else:
                yield self._note(who, process)
        yield from self._by_elimination(unknown)

    def _below(self, parent: ProcessId) -> Iterator[ProcessId]:
        """Yield unknown processes below ``parent``; a rank's own children are skipped."""
        for process in children(parent.pid):
            if process.pid in self._known:
                continue
            yield process
            # The caller has noted it by now if it is a rank; a generator resumes only after that.
            if process.pid not in self._known:
                yield from self._below(process)

    def _who(self, process: ProcessId) -> Who | None:
        environment = environment_of(process.pid)
        if environment == self._own:  # forked, and not yet another program
            return None
        if environment.get("MS_ROLE") == "MS_SCHED":
            return SCHEDULER
        text = environment.get(self._variable, "")
        return int(text) if text.isdecimal() and int(text) in self._expected else None

    def _note(self, who: Who, process: ProcessId) -> tuple[Who, ProcessId]:
        self._known[process.pid] = who
        return who, process

    def _by_elimination(self, unknown: list[ProcessId]) -> Iterator[tuple[Who, ProcessId]]:
        """Yield dead processes, which have no environment any more, by their order, once all that are missing died.

        A zombie still has the name of its program: msrun also runs lscpu and ip, which are no ranks.
        """
        missing = self.missing
        dead = [process for process in unknown if program_of(process.pid).startswith("python")]
        if dead and len(dead) == len(missing) and not any(process.is_alive() for process in unknown):
            yield from map(self._note, missing, dead)

    def rank_of(self, told: Told) -> int | None:
        """Return the rank that the engine's message names; None when its process was seen and so is watched."""
        if told.rank_id is not None:
            return told.rank_id
        # The engine gives only a pid: a process that was never seen belongs to the first rank that is missing.
        ranks = [who for who in self.missing if isinstance(who, int)]
        return ranks[0] if ranks and told.pid not in self._known else None
