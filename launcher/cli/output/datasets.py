"""What ``launcher data`` says of records and rows: shapes, fields, parts of a mixture, lengths, and what is lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from launcher.data.info import DatasetInfo


def many(count: int, noun: str) -> str:
    """Return ``count`` with ``noun``, in the plural where it is due."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def kinds_text(kinds: Mapping[str, int]) -> str:
    """Return the shapes of records that were found, the commonest first."""
    from launcher.data.formats import TITLES

    found = sorted(kinds.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{count:,} {TITLES[kind]}" for kind, count in found)


def say_read(notes: Sequence[str], read: Mapping[str, int], unread: Mapping[str, int]) -> None:
    """Say what was found out about files, and which fields were read."""
    from launcher.data.seen import read_text

    for note in notes:
        click.echo(f"  {note}")
    if text := read_text(read, unread):
        click.echo(f"  {text}")


def summary(info: DatasetInfo) -> str:
    """Return rows, samples, and tokens in the loss in one line."""
    counts = info.counts
    unit = "text" if info.stats["kind"] == "text" else "conversation"
    return (
        f"{many(info.rows, 'row')} of {info.seq_length:,} + 1 tokens from {many(counts['conversations'], unit)}, "
        f"{counts['loss_tokens']:,} of {counts['tokens']:,} tokens in the loss{_packed(info)}"
    )


def _packed(info: DatasetInfo) -> str:
    if not info.stats["options"].get("packing"):
        return ""
    return f"; rows {info.fill:.1%} full, {info.samples_a_row:.1f} samples each"


def say_details(info: DatasetInfo) -> None:
    """Say what was read, left out or cut, the parts of a mixture, held-out rows, lengths, and what is suspicious."""
    from launcher.data.tally import bars

    fields = info.stats.get("fields", {})
    say_read(info.stats.get("notes", ()), fields.get("read", {}), fields.get("unread", {}))
    sources = info.stats.get("sources", ())
    for line in source_lines(sources) if len(sources) > 1 else ():
        click.echo(f"  {line}")
    for line in (*_left_out(info), *_held_out(info)):
        click.echo(f"  {line}")
    lengths = info.stats["lengths"]
    median, most, longest = lengths["median"], lengths["p99"], lengths["max"]
    click.echo(f"  length in tokens: median {median:,}, 99 % up to {most:,}, longest {longest:,}")
    for line in bars(lengths["histogram"]):
        click.echo(f"  {line}")
    for warning in info.stats["warnings"]:
        click.echo(f"warning: {warning}", err=True)


def _left_out(info: DatasetInfo) -> Iterator[str]:
    lost, total = info.counts.get("lost_tokens", 0), info.counts["loss_tokens"]
    told = {
        "truncated": f"cut at the end; {lost:,} of {lost + total:,} tokens in the loss are lost",
        "split": "split over several rows",
        "dropped": "too long and left out",
        "without_loss": "left out because nothing of it is in the loss",
        "duplicates": "duplicates left out",
        "repeated": "exact duplicates of earlier records; --dedup leaves them out",
    }
    if info.stats["kind"] == "text":
        del told["split"]
    for key, words in told.items():
        if info.counts.get(key):
            yield f"{info.counts[key]:,} {words}"


def _held_out(info: DatasetInfo) -> Iterator[str]:
    from launcher.data.info import read_info
    from launcher.data.options import eval_path

    held_out = read_info(eval_path(info.path)) if info.stats["options"]["eval_fraction"] else None
    if held_out:
        yield f"held out: {held_out.path}: {many(held_out.rows, 'row')}"


def source_lines(sources: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each source: its samples, tokens, share, how often it is repeated, and what that rests on."""
    for source in sources:
        read = source.get("estimated_from")
        about, rests = ("about ", f" (estimated from {many(read, 'record')})") if read else ("", "")
        often = f", {source['passes']:.2f} passes" if "passes" in source else ""
        unused = f", {source['unused']:,} records left out" if source.get("unused") else ""
        samples, tokens = many(source["samples"], "sample"), many(source["tokens"], "token")
        share = f", {source['share']:.1%} of the tokens" if len(sources) > 1 else ""
        yield f"{source['path']}: {about}{samples}, {tokens}{share}{often}{unused}{rests}"
