"""Convert records of any known format to conversations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from launcher.data import outputs
from launcher.data.formats import RecordError, to_conversation, unread_keys
from launcher.data.messages import Conversation
from launcher.data.pool import ordered_map
from launcher.data.records import Chunk, Record, Reject, Source, parse, parse_fast
from launcher.data.rejects import Rejects, rejects_path
from launcher.errors import DataError

Progress = Callable[[int, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Converted:
    """The result of ``convert``: conversations by format, keys that were not read, rejected records, and whether the
    output changed."""

    kinds: Counter[str]
    unread: Counter[str]
    rejected: int
    changed: bool

    @property
    def conversations(self) -> int:
        return self.kinds.total()


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """The conversations of one chunk as JSON, each followed by the separator of the output."""

    data: bytes
    kinds: Counter[str]
    rejects: list[Reject]
    unread: Counter[str]


def read_conversations(path: Path) -> Iterator[Conversation]:
    """Read the conversations of ``path``. Raises DataError, naming file and line, for an invalid record."""
    for chunk in Source(path).chunks():
        read = conversations(chunk)
        for reject in read.rejects:
            raise DataError(f"{path}:{reject.line}: {reject.reason}", hint="launcher data convert can leave it out")
        yield from (conversation for _, conversation in read.found)


@dataclass(frozen=True, kw_only=True)
class Conversations:
    """The records of one chunk: kind and conversation of each, those rejected, and the keys that were not read.

    ``lines``: the line or row of each conversation; None when every record of the chunk is one (``record_lines``).
    """

    found: list[tuple[str, Conversation]]
    rejects: list[Reject]
    unread: Counter[str]
    lines: Sequence[int] | None

    @property
    def kinds(self) -> Counter[str]:
        return Counter([kind for kind, _ in self.found])


def conversations(chunk: Chunk) -> Conversations:
    """Return the conversations of the records of ``chunk``."""
    values = parse_fast(chunk)
    if values is not None:
        with suppress(RecordError):
            found = [to_conversation(value, place) for place, value in enumerate(values, chunk.first_record)]
            return _all_of(found, values, [], None)
    # Something is wrong in this chunk: one record at a time tells what and where.
    return _one_by_one(chunk)


def _all_of(
    found: list[tuple[str, Conversation]], values: Sequence[Any], rejects: list[Reject], lines: Sequence[int] | None
) -> Conversations:
    kinds = (kind for kind, _ in found)
    unread = Counter(key for kind, value in zip(kinds, values, strict=True) for key in unread_keys(kind, value))
    return Conversations(found=found, rejects=rejects, unread=unread, lines=lines)


def _one_by_one(chunk: Chunk) -> Conversations:
    found: list[tuple[str, Conversation]] = []
    values: list[Any] = []
    rejects: list[Reject] = []
    lines: list[int] = []
    for item in parse(chunk):
        if isinstance(item, Reject):
            rejects.append(item)
            continue
        try:
            found.append(to_conversation(item.value, item.number))
            values.append(item.value)
            lines.append(item.line)
        except RecordError as error:
            rejects.append(rejected(item, error))
    return _all_of(found, values, rejects, lines)


def rejected(record: Record, error: RecordError) -> Reject:
    """Reject ``record``, which is JSON but not usable."""
    raw = orjson.dumps(record.value).decode()
    return Reject(number=record.number, line=record.line, reason=str(error), raw=raw)


def convert(
    source: Path,
    target: Path,
    *,
    force: bool,
    lines: bool = False,
    max_rejects: int = 0,
    processes: int = 1,
    progress: Progress = lambda *_: None,
) -> Converted:
    """Write ``source`` as a JSON array of conversations, or one conversation per line if ``lines``.

    Rejected records go to ``rejects_path(target)``. ``progress`` is called with bytes read, bytes in total and
    conversations. Raises DataError for unreadable input and for more than ``max_rejects`` bad records, and
    OutputExistsError.
    """
    with outputs.scratch(target) as folder:
        built, kept = folder / target.name, folder / "rejects"
        with closing(Rejects(source, kept, most=max_rejects)) as rejects, built.open("wb") as out:
            kinds, unread = _write(out, Source(source), rejects, lines=lines, processes=processes, progress=progress)
        if not kinds:
            raise DataError(f"{source} holds no conversation")
        changed = outputs.put(built, target, force=force)
        outputs.put_or_remove(kept if rejects.count else None, rejects_path(target))
        return Converted(kinds=kinds, unread=unread, rejected=rejects.count, changed=changed)


def _write(
    out: BinaryIO, source: Source, rejects: Rejects, *, lines: bool, processes: int, progress: Progress
) -> tuple[Counter[str], Counter[str]]:
    separator = b"\n" if lines else b",\n"
    kinds: Counter[str] = Counter()
    unread: Counter[str] = Counter()
    out.write(b"" if lines else b"[\n")
    for batch in ordered_map(lambda: _Converter(separator), source.chunks(), processes=processes):
        rejects.add(batch.rejects)
        kinds += batch.kinds
        unread += batch.unread
        out.write(batch.data)
        progress(source.position, source.size, kinds.total())
    if not lines and kinds:
        out.seek(-len(separator), 1)
        out.write(b"\n]\n")
    return kinds, unread


class _Converter:
    """The job of each process: converts a chunk of records to conversations as JSON."""

    def __init__(self, separator: bytes) -> None:
        self._separator = separator

    def __call__(self, chunk: Chunk, /) -> _Batch:
        read = conversations(chunk)
        parts = [orjson.dumps(conversation.record()) for _, conversation in read.found]
        # The empty part makes the separator follow the last one too.
        data = self._separator.join([*parts, b""])
        return _Batch(data=data, kinds=read.kinds, rejects=read.rejects, unread=read.unread)
