"""Convert records of any known shape to conversations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from launcher.data import outputs
from launcher.data.files import InputFile, find_files
from launcher.data.formats import PLAIN, to_conversation
from launcher.data.messages import Conversation
from launcher.data.parsing import lines_of, parse, parse_fast
from launcher.data.pool import ordered_map
from launcher.data.reading import Given, Reading, sources_of
from launcher.data.records import Chunk, Record, Reject
from launcher.data.rejects import Rejects, rejects_path
from launcher.data.seen import Seen, seen_in
from launcher.data.sources import Sources
from launcher.data.turns import RecordError
from launcher.errors import DataError

Progress = Callable[[int, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Converted:
    """The result of ``convert``: what was recognised, rejected records, notes on files, whether the output changed."""

    seen: Seen
    rejected: int
    changed: bool
    notes: tuple[str, ...]

    @property
    def kinds(self) -> Counter[str]:
        return self.seen.kinds

    @property
    def conversations(self) -> int:
        return self.kinds.total()


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """The conversations of one chunk as JSON, each followed by the separator of the output."""

    data: bytes
    seen: Seen
    rejects: list[Reject]
    file: int


def files_of(given: Given) -> tuple[InputFile, ...]:
    """Return the files of a path, or of sources. Raises DataError."""
    return find_files(sources_of(given)).files


def read_conversations(given: Given) -> Iterator[Conversation]:
    """Read the conversations of ``given``. Raises DataError, naming file and line, for an invalid record."""
    files = files_of(given)
    for chunk in Sources(files).chunks():
        file = files[chunk.file]
        read = conversations(chunk, file.reading)
        for reject in read.rejects:
            where = file.place(reject.number, reject.line)
            raise DataError(f"{where}: {reject.reason}", hint=reject.hint or "launcher data convert can leave it out")
        read.seen.check(file.shown)
        yield from (conversation for _, conversation in read.found)


@dataclass(frozen=True, kw_only=True)
class Conversations:
    """The records of one chunk: shape and conversation of each, those rejected, and what was recognised.

    ``lines``: the line or row of each conversation; None when every record of the chunk is one (``lines_of``).
    """

    found: list[tuple[str, Conversation]]
    rejects: list[Reject]
    seen: Seen
    lines: Sequence[int] | None


def conversations(chunk: Chunk, reading: Reading = PLAIN) -> Conversations:
    """Return the conversations of the records of ``chunk``."""
    values = parse_fast(chunk)
    if values is not None:
        with suppress(RecordError):
            pairs = zip(values, _numbers(chunk, len(values)), strict=True)
            found = [to_conversation(value, number, reading) for value, number in pairs]
            lines = None if chunk.kind == "array" else lines_of(chunk, len(values))
            return _all_of(found, values, [], lines, reading)
    # Something is wrong in this chunk: one record at a time tells what and where.
    return _one_by_one(chunk, reading)


def _numbers(chunk: Chunk, count: int) -> Iterable[int | str]:
    if chunk.kind == "parsed":
        return [_number(chunk, item.number) for item in chunk.records]
    numbers = range(chunk.first_record, chunk.first_record + count)
    return (_number(chunk, number) for number in numbers) if chunk.file else numbers


def _number(chunk: Chunk, number: int) -> int | str:
    """Return what a record without an id is called by: no two of all files by the same."""
    return f"{chunk.file}-{number}" if chunk.file else number


def _all_of(
    found: list[tuple[str, Conversation]],
    values: Sequence[Any],
    rejects: list[Reject],
    lines: Sequence[int] | None,
    reading: Reading,
) -> Conversations:
    seen = seen_in((kind for kind, _ in found), values, reading)
    return Conversations(found=found, rejects=rejects, seen=seen, lines=lines)


def _one_by_one(chunk: Chunk, reading: Reading) -> Conversations:
    found: list[tuple[str, Conversation]] = []
    values: list[Any] = []
    rejects: list[Reject] = []
    lines: list[int] = []
    for item in parse(chunk):
        if isinstance(item, Reject):
            rejects.append(item)
            continue
        try:
            found.append(to_conversation(item.value, _number(chunk, item.number), reading))
            values.append(item.value)
            lines.append(item.line)
        except RecordError as error:
            rejects.append(rejected(item, error))
    return _all_of(found, values, rejects, lines, reading)


def rejected(record: Record, error: RecordError) -> Reject:
    """Reject ``record``, which can be read but not used."""
    raw = orjson.dumps(record.value, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
    return Reject(number=record.number, line=record.line, reason=str(error), raw=raw, hint=error.hint)


def convert(
    source: Given,
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
    conversations. Raises DataError for unreadable input, for texts that no conversation holds and for more than
    ``max_rejects`` bad records, and OutputExistsError.
    """
    given = find_files(sources_of(source))
    with outputs.scratch(target) as folder:
        built, kept = folder / target.name, folder / "rejects"
        sources = Sources(given.files)
        with closing(Rejects(given.files, kept, most=max_rejects)) as rejects, built.open("wb") as out:
            seen = _write(out, sources, given.files, rejects, lines=lines, processes=processes, progress=progress)
        if not seen.kinds:
            raise DataError(f"{given.shown} holds no conversation")
        changed = outputs.put(built, target, force=force)
        outputs.put_or_remove(kept if rejects.count else None, rejects_path(target))
        own = seen.notes((file.reading for file in given.files), sources.left_out)
        notes = (*given.notes, *sources.notes, *own)
        return Converted(seen=seen, rejected=rejects.count, changed=changed, notes=notes)


def _write(
    out: BinaryIO,
    sources: Sources,
    files: Sequence[InputFile],
    rejects: Rejects,
    *,
    lines: bool,
    processes: int,
    progress: Progress,
) -> Seen:
    separator = b"\n" if lines else b",\n"
    seen = Seen()
    out.write(b"" if lines else b"[\n")
    for batch in ordered_map(lambda: _Converter(separator, files), sources.chunks(), processes=processes):
        rejects.add(batch.rejects, batch.file, good=batch.seen.kinds.total())
        batch.seen.check(files[batch.file].shown)
        seen.add(batch.seen)
        out.write(batch.data)
        progress(sources.position, sources.size, seen.kinds.total())
    if not lines and seen.kinds:
        out.seek(-len(separator), 1)
        out.write(b"\n]\n")
    return seen


class _Converter:
    """The job of each process: converts a chunk of records to conversations as JSON."""

    def __init__(self, separator: bytes, files: Sequence[InputFile]) -> None:
        self._separator = separator
        self._files = files

    def __call__(self, chunk: Chunk, /) -> _Batch:
        read = conversations(chunk, self._files[chunk.file].reading)
        parts = [orjson.dumps(conversation.record()) for _, conversation in read.found]
        # The empty part makes the separator follow the last one too.
        data = self._separator.join([*parts, b""])
        return _Batch(data=data, seen=read.seen, rejects=read.rejects, file=chunk.file)
