"""The leader of an attempt on several hosts: agents started, hosts checked, commands given, the first failure found.

It reads one small file a host, and nothing of a rank. Times that hosts report are corrected by how far their clocks
are from ours: the first failure is found also where a clock is off by a minute.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from launcher import jobs
from launcher.common.atomic import write_atomic
from launcher.common.processes import die_with_parent, kill_descendants, reap
from launcher.errors import LauncherError
from launcher.jobs import JobPaths
from launcher.jobs.logs import tail
from launcher.jobs.verdict import EN, ZH, Verdict
from launcher.plan.launch import HANG_FACTOR, MIN_HANG_TIMEOUT_S, Launch, NodePlace
from launcher.schedulers import SCHEDULED
from launcher.schedulers.agents import AgentStart, agent_starts
from launcher.schedulers.registration import CLOCK_S, Registration, problems
from launcher.supervise.attempt import BUSY_FACTOR, Outcome, folder_gone
from launcher.supervise.multinode.host_verdicts import host_verdict, program_verdict, silent, span, with_others
from launcher.supervise.multinode.leader_link import DONE, END, ENDED, SAVING, START, STOP, LeaderCommand, heartbeat_s
from launcher.supervise.multinode.rendezvous import bind_hosts, cluster_of
from launcher.supervise.multinode.status_file import StatusFile, read_status
from launcher.supervise.rank_states import RankStates
from launcher.supervise.stop_signals import StopSignals
from launcher.supervise.verdict import describe_exit, stack_of

if TYPE_CHECKING:
    from launcher.common.rendering import RenderedFile

# The exit code of ssh for failures of its own (ssh(1)).
SSH_FAILED = 255

# Beyond the grace, for KILL and for files to come.
_SLACK_S = 10.0

# Up to so many hosts a look at all is cheap, and a failure is seen the sooner the more often there is one.
_FEW_HOSTS = 200

# A process that brought an agent to its host has ended: the agent's last report may be on its way.
_LAST_REPORT_S = 2.0


@dataclass(kw_only=True)
class Node:
    """One host as the leader sees it.

    ``ahead_s``: its clock minus ours, as well as it is known. ``ready``: all its ranks are. ``steps``: theirs, summed.
    """

    place: NodePlace
    start: AgentStart | None = None
    heartbeat: int | None = None
    seen: float = 0.0
    status: dict[str, Any] = field(default_factory=dict)
    here: Registration | None = None
    end: dict[str, Any] | None = None
    lost: Verdict | None = None
    lost_at: float = 0.0
    least_s: float | None = None
    ahead_s: float | None = None
    ready: bool = False
    steps: int = 0
    left_at: float | None = None

    @property
    def name(self) -> str:
        return self.here.name if self.here else self.place.name

    @property
    def over(self) -> bool:
        return self.end is not None or self.lost is not None

    @property
    def state(self) -> str:
        return str(self.status.get("state", ""))

    @property
    def ranks(self) -> dict[int, tuple[str, int]]:
        return {int(rank_id): (state, step) for rank_id, (state, step) in self.status.get("ranks", {}).items()}

    def note(self, status: dict[str, Any], now: float, wall: float) -> None:
        """Take a new sign of life.

        Delays are never negative: of differences in our direction the largest is the truest, of those that the host
        itself saw in the other the smallest; its clock is between the two.
        """
        self.heartbeat, self.seen, self.status = status["heartbeat"], now, status
        least = float(status["time"]) - wall
        self.least_s = least if self.least_s is None else max(self.least_s, least)
        most = status.get("ahead_most_s")
        self.ahead_s = self.least_s if most is None else (self.least_s + float(most)) / 2
        ranks = status.get("ranks", {}).values()
        self.ready = bool(ranks) and all(state in ("ready", "done") for state, _ in ranks)
        self.steps = sum(step for _, step in ranks)

    def our_time(self, their_time: float) -> float:
        return their_time - (self.ahead_s or 0.0)


class Leader:
    """Runs once, like ``Attempt`` on one host. ``tell`` is called with the job's states."""

    def __init__(
        self, paths: JobPaths, launch: Launch, signals: StopSignals, tell: Callable[[str, RankStates], None]
    ) -> None:
        self.paths, self.launch, self.signals, self._tell = paths, launch, signals, tell
        self.limits, self.states = launch.limits, RankStates((), None)
        self._command, self._status_file = LeaderCommand(), StatusFile(paths.leader_status)
        self._nodes = [Node(place=place) for place in launch.nodes]
        self._spawned: list[tuple[AgentStart, subprocess.Popen[bytes]]] = []
        self._heartbeat_s = heartbeat_s(launch.limits.lost_s)
        self._look_s = min(self._heartbeat_s / 2, 0.1 if len(self._nodes) <= _FEW_HOSTS else 1.0)
        self._heartbeat_at = self._polled_at = 0.0
        self._state = ""
        self._warnings: list[str] = []
        self._progress = (0, False, time.monotonic())

    def run(self) -> Outcome:
        """The whole attempt. However it ends, nothing that can be reached is left."""
        try:
            self._make_folders()
            self._spawn_agents()
            return self._gather() or self._begin() or self._follow()
        finally:
            self._end_all()

    # ------------------------------------------------------------------------------------------------ starting

    def _make_folders(self) -> None:
        """Status files are made before anybody looks for them: NFS remembers for a while that a file is missing."""
        self.paths.make_attempt_folders()
        self.paths.nodes.mkdir(exist_ok=True)
        for node in self._nodes:
            self.paths.node_status(node.place.node_rank).touch()
        with contextlib.suppress(OSError):
            self.paths.control.write_text("", encoding="utf-8")
        self._send(self._command)
        self._set_state(jobs.STARTING)

    def _spawn_agents(self) -> None:
        for start in agent_starts(self.launch, self.paths):
            with self.paths.log(start.name).open("ab") as output:
                popen = subprocess.Popen(
                    start.command.argv,
                    env=dict(start.command.env),
                    cwd=self.paths.work,
                    stdin=subprocess.PIPE if start.holds_stdin else subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=die_with_parent,
                )
            self._spawned.append((start, popen))
            for node_rank in start.node_ranks:
                self._nodes[node_rank].start = start

    def _gather(self) -> Outcome | None:
        """Until all hosts have reported, and fit together."""
        self._for(self.limits.register_s, lambda: all(node.here for node in self._nodes) or self._trouble())
        if self._asked():
            return self._stop_as_asked()
        if any(node.over for node in self._nodes):
            return self._fail()
        missing = [node for node in self._nodes if not node.here]
        if missing:
            how = f"it did not report within {self.limits.register_s:.0f} s"
            return self._host_fails(missing[0], {EN: how, ZH: f"{self.limits.register_s:.0f} 秒内未上报"}, "no_start")
        return None

    def _begin(self) -> Outcome | None:
        found = [node.here for node in self._nodes if node.here]
        faults = problems(self.launch.nodes, self.launch.ranks, found)
        if faults:
            return self._refuse("the hosts cannot run this job together", faults)
        try:
            self.launch = bind_hosts(self.launch, found)
            self._write_rank_table(found)
        except LauncherError as error:
            return self._refuse(error.message, [error.hint] if error.hint else [])
        for node, place in zip(self._nodes, self.launch.nodes, strict=True):
            node.place = place
        write_atomic(self.paths.start, self.launch.to_json(), parents=False)
        for share in self.launch.for_nodes():
            self.paths.node_start(share.node_rank).write_text(share.to_json(), encoding="utf-8")
        self._send(replace(self._command, action=START))
        self._began = time.monotonic()
        self._progress = (0, False, self._began)
        return None

    def _write_rank_table(self, found: list[Registration]) -> None:
        """The table of the cards that were found, held to the same rules as anybody's."""
        if self.launch.target != "Ascend":
            return
        from launcher.cluster.rank_table import check_text, render_rank_table
        from launcher.common.rendering import environment

        file = self._operators_table() or render_rank_table(environment(), cluster_of(self.launch, found))
        report = check_text(file.text, file.path).for_kind(found[0].kind)
        errors = [f"{problem.code} {problem.path} {problem.detail}" for problem in report.of_level("E")]
        if errors:
            raise LauncherError("the rank table of the cards that were found is wrong", hint="; ".join(errors[:5]))
        write_atomic(self.paths.root / file.path, file.text)

    def _operators_table(self) -> RenderedFile | None:
        """On Kubernetes the Ascend operator may write the table; it is waited for where its config map is mounted."""
        if self.launch.where.get("kind") != "kubernetes":
            return None
        from launcher.common.rendering import RenderedFile
        from launcher.schedulers.kubernetes import operators_table

        self._for(self.limits.register_s, lambda: operators_table() != "" or self.signals.count)
        text = operators_table()
        return RenderedFile(path="rank_table.json", text=text) if text else None

    def _refuse(self, message: str, lines: list[str]) -> Outcome:
        text = "\n".join([message, *(f"  - {line}" for line in lines)])
        verdict = Verdict(
            rank_id=None,
            reason="; ".join([message, *lines])[:400],
            step=None,
            kind="foreign",
            text={EN: text, ZH: text},
        )
        return Outcome(state=jobs.FAILED, verdict=verdict)

    # ------------------------------------------------------------------------------------------------ watching

    def _send(self, command: LeaderCommand) -> None:
        self._command = replace(command, heartbeat=self._command.heartbeat + 1, time=time.time())
        with contextlib.suppress(OSError):
            self._status_file.write(asdict(self._command))
        self._heartbeat_at = time.monotonic() + self._heartbeat_s

    def _tick(self, timeout_s: float) -> None:
        time.sleep(timeout_s)
        if self.signals.received:
            self.signals.drain()
        now = time.monotonic()
        if now - self._polled_at > self.limits.lost_s / 2:  # we were stopped or stuck ourselves: that is no silence
            for node in self._nodes:
                node.seen = now
        self._polled_at = now
        reap(self._note_end)
        for node in self._nodes:
            if not node.over:
                self._look_at(node, now)
        if now >= self._heartbeat_at:
            self._send(self._command)
            self._read_control()

    def _look_at(self, node: Node, now: float) -> None:
        status = read_status(self.paths.node_status(node.place.node_rank))
        if status and status.get("heartbeat") != node.heartbeat:
            node.note(status, now, time.time())
            if node.here is None:
                self._note_here(node)
        if node.state == ENDED or node.left_at is not None:
            node.end = _read_json(self.paths.node_end(node.place.node_rank))
        if node.end and node.end["state"] == jobs.CANCELLED and self._command.action == START and not self._asked():
            how = {EN: "its agent was cut off from us and has ended", ZH: "agent 与主控的连接中断，已退出"}
            self._lose(node, how, 0.0)
        elif node.end is None and node.left_at is not None and now - node.left_at > self._patience_s(node):
            self._note_cut(node)
        elif node.end is None and node.here and now - node.seen > self.limits.lost_s:
            self._lose(node, silent(now - node.seen), now - node.seen)

    def _note_here(self, node: Node) -> None:
        raw = _read_json(self.paths.node_here(node.place.node_rank))
        if raw is not None:
            node.here = Registration.from_dict(raw)
            if abs(node.ahead_s or 0.0) > CLOCK_S:
                side = "ahead of" if (node.ahead_s or 0.0) > 0 else "behind"
                self._warnings.append(
                    f"the clock of {node.name} is {abs(node.ahead_s or 0.0):.0f} s {side} this host's; times of events "
                    "are corrected for it, times in logs are not"
                )

    def _note_end(self, pid: int, code: int) -> None:
        for start, popen in self._spawned:
            if popen.pid == pid:
                popen.returncode = code
                for node_rank in start.node_ranks:
                    self._nodes[node_rank].left_at = time.monotonic()

    def _patience_s(self, node: Node) -> float:
        """How long a last report may be on its way; none comes where ssh lost the host, or srun was killed."""
        code = self._left_code(node)
        return 0.2 if code == SSH_FAILED or (code or 0) < 0 else _LAST_REPORT_S

    def _left_code(self, node: Node) -> int | None:
        """How what brought the agent to its host ended; None while it has not."""
        return next((popen.returncode for start, popen in self._spawned if start is node.start), None)

    def _note_cut(self, node: Node) -> None:
        """What brought the agent to its host has ended, and the agent has not reported how."""
        code = self._left_code(node)
        if node.start and len(node.start.node_ranks) > 1 and code is not None and code < 0:
            node.lost, node.lost_at = (
                program_verdict(node.start.name, describe_exit(code), describe_exit(code, ZH)),
                0.0,
            )
            return
        limit_s = node.start.limit_s if node.start else 0.0
        if code == SSH_FAILED and node.here and limit_s and not self._still_connected(node):
            from launcher.supervise.multinode.host_verdicts import cut

            self._lose(node, cut(limit_s), limit_s)
            return
        how = "its agent was killed" if code == SSH_FAILED else f"its agent has ended with {code} and no report"
        if not node.here:
            how = f"no agent could be started there (exit code {code})"
        self._lose(node, {EN: how, ZH: f"agent 异常退出（{code}）"}, _LAST_REPORT_S)

    def _still_connected(self, node: Node) -> bool:
        """ssh says the same of a host that it lost and of a command that was killed there."""
        from launcher.schedulers.hosts import is_connected

        return is_connected(self.launch, self.paths, node.place.address)

    def _lose(self, node: Node, how: dict[str, str], since_s: float) -> None:
        lines = tail(self.paths.log(node.start.name), 6) if node.start and not node.status.get("ranks") else []
        node.lost = host_verdict(
            node.place, self.launch.ranks, how, kind="host_lost", lines=lines, retry=bool(node.here)
        )
        node.lost_at = time.time() - since_s

    def _read_control(self) -> None:
        """``launcher stop`` on another host cannot signal us; it writes this file."""
        if not self.signals.count and self._control_text():
            self.signals.direct.append(signal.SIGTERM)

    def _for(self, seconds: float, until: Callable[[], object]) -> bool:
        deadline = time.monotonic() + seconds
        while not until() and time.monotonic() < deadline:
            self._tick(self._look_s)
        return bool(until())

    def _trouble(self) -> bool:
        """A host is over that should not be, or we are asked to stop."""
        return any(node.over for node in self._nodes) or bool(self._asked())

    def _asked(self) -> int:
        """The signal that asked us, or any of the agents, to stop; 0 for none."""
        asked = next((int(node.status["stop_signal"]) for node in self._nodes if node.status.get("stop_signal")), 0)
        if asked and not self.signals.count:
            self.signals.direct.append(asked)
        return self.signals.received[0] if self.signals.count else 0

    def _set_state(self, state: str) -> None:
        if state != self._state:
            self._state = state
            self._tell(state, self.states)

    def _follow(self) -> Outcome:
        while True:
            self._tick(self._look_s)
            if any(node.lost or (node.end and node.end["state"] == jobs.FAILED) for node in self._nodes):
                return self._fail()
            if self._asked():
                return self._stop_as_asked()
            if all(node.state == DONE or node.end for node in self._nodes):
                return self._finish()
            failure = self._folder_gone() or self._late() or self._hanging()
            if failure:
                return failure
            if self._all_ready():
                self._set_state(jobs.RUNNING)

    # ----------------------------------------------------------------------------------------------ranks of all hosts

    def _ranks(self) -> dict[int, tuple[str, int]]:
        return {rank_id: state for node in self._nodes for rank_id, state in node.ranks.items()}

    def _all_ready(self) -> bool:
        return all(node.ready for node in self._nodes)

    def _folder_gone(self) -> Outcome | None:
        """Agents, which hear of us through that folder, end by themselves."""
        return self._refuse(folder_gone(self.paths), []) if self.paths.is_gone else None

    def _late(self) -> Outcome | None:
        if self._state == jobs.RUNNING or time.monotonic() - self._began < self.limits.start_timeout_s:
            return None
        ranks = self._ranks()
        order = {"new": 0, "begun": 1}
        late = [rank for rank in self.launch.ranks if ranks.get(rank.rank_id, ("new", 0))[0] in order]
        if not late:
            return None
        first = min(late, key=lambda rank: order[ranks.get(rank.rank_id, ("new", 0))[0]])
        seconds = f"{self.limits.start_timeout_s:.0f}"
        how = {
            EN: f"rank {first.rank_id} did not start within {seconds} s",
            ZH: f"rank {first.rank_id} 在 {seconds} 秒内未启动",
        }
        return self._host_fails(self._nodes[first.node_rank], how, "no_start")

    def _hanging(self) -> Outcome | None:
        total, busy = sum(node.steps for node in self._nodes), any(node.status.get("busy") for node in self._nodes)
        if (total, busy) != self._progress[:2]:
            self._progress = (total, busy, time.monotonic())
        waited = time.monotonic() - self._progress[2]
        if total == 0 or waited < self._hang_timeout_s():
            return None
        ranks = self._ranks()
        ahead = max(step for _, step in ranks.values())
        behind = sorted(rank_id for rank_id, (_, step) in ranks.items() if step < ahead)
        self._send(replace(self._command, stacks=True))
        self._for(2 * self._heartbeat_s + 1.0, lambda: False)
        lines = stack_of(self.paths, behind[0] if behind else 0)
        how = _no_progress(waited, ahead, behind)
        at = {self.launch.ranks[rank_id].node_rank for rank_id in behind}
        if len(at) == 1:
            place = self._nodes[at.pop()].place
            return self._fail(host_verdict(place, self.launch.ranks, how, kind="no_progress", lines=lines))
        text = {lang: "\n".join([said, *(f"    {line}" for line in lines)]) for lang, said in how.items()}
        verdict = Verdict(
            rank_id=None, reason=how[EN], step=ahead, kind="no_progress", behind=tuple(behind), retry=True, text=text
        )
        return self._fail(verdict)

    def _hang_timeout_s(self) -> float:
        timeout_s = self.limits.hang_timeout_s
        if timeout_s is None:
            times = [node.status.get("step_s") or 0.0 for node in self._nodes]
            timeout_s = max(MIN_HANG_TIMEOUT_S, HANG_FACTOR * max(times))
        return timeout_s * (BUSY_FACTOR if self._progress[1] else 1)

    # ------------------------------------------------------------------------------------------------ ends

    def _finish(self) -> Outcome:
        self._send(replace(self._command, action=END))
        self._for(self.limits.leave_s + _SLACK_S, lambda: all(node.over for node in self._nodes))
        warnings = [warning for node in self._nodes if node.end for warning in node.end["warnings"]]
        return Outcome(state=jobs.SUCCEEDED, warnings=(*self._warnings, *warnings))

    def _host_fails(self, node: Node, how: dict[str, str], kind: str) -> Outcome:
        verdict = host_verdict(node.place, self.launch.ranks, how, kind=kind, lines=self._last_words(node))
        return self._fail(verdict)

    def _last_words(self, node: Node) -> list[str]:
        return tail(self.paths.log(node.start.name), 6) if node.start and not node.here else []

    def _fail(self, verdict: Verdict | None = None) -> Outcome:
        """Stop the others; then the earliest failure of all is the first, also one that was noticed late.

        ``verdict``: what was judged from silence; a failure that came before explains it.
        """
        judged_at = time.time()
        self._send(replace(self._command, action=STOP, hurry=True))
        wait_s = max(self.limits.lost_s, _SLACK_S) + 2 * self._heartbeat_s
        self._for(wait_s, self._all_gone)
        node, found, failed_at = self._first_failure()
        if found is not None and (verdict is None or failed_at < judged_at):
            verdict = found
        if verdict is None:
            verdict = Verdict(
                rank_id=None, reason="a host has ended", step=None, kind="foreign", text={EN: "a host has ended"}
            )
        others = [n.name for n in self._nodes if n is not node and n.end and n.end["state"] == jobs.CANCELLED]
        return Outcome(state=jobs.FAILED, verdict=with_others(verdict, others), warnings=tuple(self._warnings))

    def _first_failure(self) -> tuple[Node | None, Verdict | None, float]:
        failures: list[tuple[float, Node, Verdict]] = []
        for node in self._nodes:
            if node.lost:
                failures.append((node.lost_at, node, node.lost))
            elif node.end and node.end["state"] == jobs.FAILED:
                failed_at = node.our_time(node.end["failed_at"] or time.time())
                failures.append((failed_at, node, Verdict(**node.end["verdict"])))
        if not failures:
            return None, None, 0.0
        failed_at, node, verdict = min(failures, key=lambda failure: failure[0])
        return node, verdict, failed_at

    def _stop_as_asked(self) -> Outcome:
        """All hosts stop; after the same step, all having saved, if that is wanted."""
        self._set_state(jobs.STOPPING)
        request = self.signals.request(self.paths, self.limits.grace_s)
        save = request.save or not self._stopped_by_user()
        started = self._command.action == START
        self._send(replace(self._command, action=STOP, grace_s=request.grace_s, save=save and started))
        if save and started:
            self._for(request.grace_s, lambda: self._all_gone() or self._all_saving() or self._hurried)
            self._send(replace(self._command, stop_at=self._stop_step()))
            self._for(request.grace_s, lambda: self._all_done() or self._hurried)
            self._send(replace(self._command, hurry=True))
        self._for(request.grace_s + _SLACK_S, lambda: self._all_gone() or self._hurried)
        self._send(replace(self._command, hurry=True))
        self._for(_SLACK_S, self._all_gone)
        return self._stopped()

    def _stopped_by_user(self) -> bool:
        """Whether ``launcher stop`` or Ctrl-C asked for it; else a scheduler did, which lets us save."""
        scheduled = self.launch.where.get("kind") in ("slurm", "kubernetes")
        return (not scheduled and not any(node.status.get("stop_signal") for node in self._nodes)) or bool(
            self._control_text()
        )

    def _control_text(self) -> str:
        with contextlib.suppress(OSError):
            return self.paths.control.read_text(encoding="utf-8").strip()
        return ""

    def _stopped(self) -> Outcome:
        saved = {node.end["saved_step"] for node in self._nodes if node.end}
        lost = [f"{node.name} did not answer when the job was stopped" for node in self._nodes if node.lost]
        step = saved.pop() if len(saved) == 1 and not lost else None
        warnings = (*self._warnings, *lost)
        if self.launch.where.get("kind") == "slurm":
            from launcher.schedulers.slurm import in_vain

            if verdict := in_vain(self.launch, self.paths):
                return Outcome(state=jobs.FAILED, verdict=verdict, warnings=warnings)
        return Outcome(state=jobs.CANCELLED, saved_step=step, warnings=warnings, later=self._later())

    def _later(self) -> str | None:
        """How it comes that the job goes on later, by its scheduler; None when it does not."""
        if self.launch.where.get("kind") == "kubernetes" and not self._control_text():
            return "Kubernetes takes a pod away; the job goes on when it is started again"
        if self.launch.where.get("kind") != "slurm":
            return None
        from launcher.schedulers.slurm import requeue_note

        return requeue_note(self.launch, self.paths)

    @property
    def _scheduled(self) -> bool:
        return self.launch.where.get("kind") in SCHEDULED

    @property
    def _hurried(self) -> bool:
        """Asked twice by a user: a scheduler's second signal is the time limit, of which it warned us."""
        if not self._scheduled:
            return self.signals.count > 1
        with contextlib.suppress(ValueError, AttributeError):
            return bool(json.loads(self._control_text() or "{}").get("at_once"))
        return False

    def _all_gone(self) -> bool:
        return all(node.over or not node.here for node in self._nodes)

    def _all_done(self) -> bool:
        return all(node.state == DONE or node.over for node in self._nodes)

    def _all_saving(self) -> bool:
        return all(node.state in (SAVING, DONE) or node.over for node in self._nodes)

    def _stop_step(self) -> int:
        """A step that no rank can have begun when it hears of it: positions are as old as a report takes."""
        entered = max((step for _, step in self._ranks().values()), default=0)
        step_s = min((node.status.get("step_s") or 1.0 for node in self._nodes), default=1.0)
        return jobs.step_to_stop_at(self.paths, entered + 2 + int(4 * self._heartbeat_s / max(step_s, 0.001)))

    def _end_all(self) -> None:
        """Agents end when told so, when our status is silent, or when their line to us is cut; at the latest now."""
        if self._command.action not in (STOP, END) or not self._command.hurry:
            self._send(replace(self._command, action=END, hurry=True))
        self._for(_SLACK_S, lambda: all(node.over or node.heartbeat is None for node in self._nodes))
        for _, popen in self._spawned:
            if popen.stdin:
                with contextlib.suppress(OSError):
                    popen.stdin.close()
        self._for(1.0, lambda: all(popen.returncode is not None for _, popen in self._spawned))
        if self.launch.where.get("kind") == "hosts":
            from launcher.schedulers.hosts import end_connections

            end_connections(self.launch, self.paths)
        kill_descendants(self._note_end)


def _read_json(path: Any) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        raw = json.loads(path.read_text(encoding="utf-8"))
        return raw if isinstance(raw, dict) else None
    return None


def _no_progress(waited_s: float, step: int, behind: Sequence[int]) -> dict[str, str]:
    late_en = f"; not yet in step {step}: {span(behind)}" if behind else ""
    late_zh = f"；尚未进入 step {step}：{span(behind)}" if behind else ""
    return {
        EN: f"no progress: no rank finished a step for {waited_s:.0f} s{late_en}",
        ZH: f"没有进展：{waited_s:.0f} 秒内没有任何 rank 完成一个 step{late_zh}",
    }
