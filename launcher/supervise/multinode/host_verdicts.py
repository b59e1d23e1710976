"""Verdicts on hosts: one that was lost, one that cannot take part, the leader that is gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from launcher.common.ranges import spans
from launcher.jobs.verdict import EN, ZH, Verdict
from launcher.plan.launch import Launch, NodePlace, RankPlace
from launcher.supervise.rank_states import Failure

_NEXT = {
    EN: "next: launcher resume JOB, once that host is back; a scheduler may give another",
    ZH: "下一步：主机恢复后（或由调度器另行分配）launcher resume JOB",
}


def span(ranks: Sequence[int]) -> str:
    """Return ascending ``ranks`` in the shortest words: "rank 3", "ranks 8-15" or "ranks 0, 4, 8"."""
    return f"rank{'s' * (len(ranks) > 1)} {spans(ranks)}"


def host_verdict(
    node: NodePlace, ranks: Sequence[RankPlace], how: dict[str, str], *, kind: str, lines: Sequence[str] = (),
    retry: bool = True,
) -> Verdict:  # fmt: skip
    """Return the verdict on a host that failed as a whole. ``lines``: its last output."""
    own = [rank.rank_id for rank in ranks if rank.node_rank == node.node_rank]
    address = f" ({node.address})" if node.address and node.address != node.name else ""
    said = [f"    {line}" for line in lines]
    text = {
        EN: [f"host {node.name}{address} failed first: {how[EN]}", *said, f"  it had {span(own)}"],
        ZH: [f"主机 {node.name}{address} 最先失败：{how[ZH]}", *said, f"  该主机运行 {span(own)}"],
    }
    ends = {lang: [f"  {_NEXT[lang]}"] if retry else [] for lang in text}
    return Verdict(
        rank_id=None,
        reason=f"host {node.name}: {how[EN]}",
        step=None,
        kind=kind,
        host=node.name,
        retry=retry,
        text={lang: "\n".join([*lines_, *ends[lang]]) for lang, lines_ in text.items()},
    )


def program_verdict(name: str, how: str, how_zh: str) -> Verdict:
    """Return the verdict on the one program that runs the agents of all hosts."""
    text = {
        EN: f"{name}, which holds the agents on all hosts, failed first: {how}\n  next: launcher resume JOB",
        ZH: f"{name}（运行所有主机的 agent）最先失败：{how_zh}\n  下一步：launcher resume JOB",
    }
    return Verdict(rank_id=None, reason=f"{name}: {how}", step=None, kind="exit", retry=True, text=text)


def silent(seconds: float) -> dict[str, str]:
    return {
        EN: f"it is lost: no sign of life for {seconds:.0f} s",
        ZH: f"主机失联：{seconds:.0f} 秒内没有任何心跳",
    }


def cut(seconds: float, line: str) -> dict[str, str]:
    silence = f"no answer over {line} for {seconds:.0f} s"
    return {
        EN: f"it cannot be reached any more: {silence}; its network or the host is down",
        ZH: f"主机不可达：{line} 在 {seconds:.0f} 秒内无响应，网络或主机故障",
    }


def late_host(rank_id: int, seconds: str) -> dict[str, str]:
    return {
        EN: f"rank {rank_id} did not start within {seconds} s",
        ZH: f"rank {rank_id} 在 {seconds} 秒内未启动",
    }


def hang_verdict(launch: Launch, failure: Failure, step: int, lines: Sequence[str]) -> Verdict:
    """Return the verdict on a hang: on one host when all ranks that are behind are on it, else on the job."""
    how = _no_progress(failure.detail, step, failure.behind)
    at = {launch.ranks[rank_id].node_rank for rank_id in failure.behind}
    if len(at) == 1:
        return host_verdict(launch.nodes[at.pop()], launch.ranks, how, kind=failure.kind, lines=lines)
    text = {lang: "\n".join([said, *(f"    {line}" for line in lines)]) for lang, said in how.items()}
    return Verdict(
        rank_id=None, reason=how[EN], step=step, kind=failure.kind, behind=failure.behind, retry=True, text=text
    )


def _no_progress(seconds: str, step: int, behind: Sequence[int]) -> dict[str, str]:
    late_en = f"; not yet in step {step}: {span(behind)}" if behind else ""
    late_zh = f"；尚未进入 step {step}：{span(behind)}" if behind else ""
    return {
        EN: f"no progress: no rank finished a step for {seconds} s{late_en}",
        ZH: f"没有进展：{seconds} 秒内没有任何 rank 完成一个 step{late_zh}",
    }


def foreign(message: str, lines: Sequence[str]) -> Verdict:
    """Return the verdict on a fault of no single host: hosts that do not fit together, a folder that is gone."""
    text = "\n".join([message, *(f"  - {line}" for line in lines)])
    reason = "; ".join([message, *lines])[:400]
    return Verdict(rank_id=None, reason=reason, step=None, kind="foreign", text={EN: text, ZH: text})


def own_failure(node: NodePlace, message: str) -> Verdict:
    """Return the verdict on a host whose agent could not go on."""
    return Verdict(
        rank_id=None,
        reason=f"host {node.name}: {message}",
        step=None,
        kind="foreign",
        host=node.name,
        text={EN: f"host {node.name}: {message}", ZH: f"主机 {node.name}：{message}"},
    )


def leader_verdict(host: str, seconds: float) -> Verdict:
    """Return the verdict that an agent writes when the leader is lost and so can write none."""
    how = silent(seconds)
    return Verdict(
        rank_id=None,
        reason=f"host {host}: {how[EN]}",
        step=None,
        kind="host_lost",
        host=host,
        retry=True,
        text={
            EN: f"host {host}, from which the job was led, failed first: {how[EN]}\n  {_NEXT[EN]}",
            ZH: f"主机 {host}（任务的主控）最先失败：{how[ZH]}\n  {_NEXT[ZH]}",
        },
    )


def with_others(verdict: Verdict, names: Sequence[str]) -> Verdict:
    """Return ``verdict`` with the names of the other hosts that were stopped because of it."""
    if not names:
        return verdict
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    added = {
        EN: f"  stopped by launcher afterwards, on other hosts: {shown}",
        ZH: f"  随后由 launcher 停止的主机：{shown}",
    }
    return replace(verdict, text={lang: f"{text}\n{added[lang]}" for lang, text in verdict.text.items()})
