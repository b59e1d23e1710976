"""What ``launcher data stats`` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from launcher.cli.output.tables import table
from launcher.data.stats import told
from launcher.data.tally import bars

_HEADER = ("source", "samples", "tokens", "share", "in loss", "median", "99 %", "longest", "cut", "left out", "again")


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the statistics of a dataset as text."""
    sources = found["sources"]
    yield click.style(_title(found), bold=True)
    yield ""
    yield table(_HEADER, [_row(source) for source in sources], right=range(1, len(_HEADER)))
    for source in sources:
        yield ""
        yield click.style(f"{source['file']}: lengths in tokens", bold=True)
        yield from (click.style(f"  {line}", fg="cyan") for line in bars(source["lengths"]["histogram"]))
    yield from _part("longest samples", [_long(sample) for sample in found["longest"]])
    yield from _part(f"vocabulary: {_coverage(sources)}", [_odd(sample) for sample in found["odd"]])
    repeated = found["duplicates"]
    title = f"duplicates: {repeated['samples']:,} samples are there before" if repeated["samples"] else "no duplicates"
    yield from _part(title, [f"{pair['place']} is {pair['of']}" for pair in repeated["first"]])
    for warning in found["warnings"]:
        yield click.style(f"warning: {warning}", fg="yellow")


def _title(found: Mapping[str, Any]) -> str:
    packed = f", {found['samples_a_row']:.1f} samples a row" if found["packed"] else ""
    return (
        f"{found['dataset']}: {found['rows']:,} rows of {found['seq_length']:,} + 1 tokens, "
        f"{found['fill']:.1%} full{packed}"
    )


def _row(source: Mapping[str, Any]) -> Sequence[str]:
    lengths = source["lengths"]
    counts = (source["cut"], source["left_out"], source["duplicates"])
    return (
        source["file"],
        f"{source['samples']:,}",
        f"{source['tokens']:,}",
        f"{source['share']:.0%}",
        f"{source['loss_tokens'] / max(source['tokens'], 1):.0%}",
        *(f"{lengths[key]:,}" for key in ("median", "p99", "max")),
        *(f"{count:,}" for count in counts),
    )


def _part(title: str, rows: Sequence[str]) -> Iterator[str]:
    yield ""
    yield click.style(title, bold=True)
    yield from (f"  {row}" for row in rows)


def _long(sample: Mapping[str, Any]) -> str:
    return "  ".join([f"{sample['tokens']:>7,}  {sample['place']}", *told(sample)])


def _odd(sample: Mapping[str, Any]) -> str:
    found = [
        f"{sample[key]:,} {name}" for key, name in (("unknown", "unknown"), ("bytes", "single bytes")) if sample[key]
    ]
    return f"{' and '.join(found)} of {sample['tokens']:,} tokens: {sample['place']}"


def _coverage(sources: Sequence[Mapping[str, Any]]) -> str:
    total = {key: sum(source[key] for source in sources) for key in ("tokens", "characters", "unknown", "bytes")}
    tokens = max(total["tokens"], 1)
    a_character = f", {total['tokens'] / total['characters']:.2f} tokens a character" if total["characters"] else ""
    return f"{total['unknown'] / tokens:.2%} of tokens unknown, {total['bytes'] / tokens:.2%} single bytes{a_character}"
