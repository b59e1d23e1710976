"""Convert records of any known format to conversations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import orjson

from launcher.data import outputs
from launcher.data.formats import RecordError, to_conversation
from launcher.data.messages import Conversation
from launcher.data.pool import ordered_map
from launcher.data.records import Chunk, Record, Reject, Source, parse, parse_fast
from launcher.data.rejects import Rejects, rejects_path
from launcher.errors import DataError

Progress = Callable[[int, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Converted:
    """The result of ``convert``: conversations by format, rejected records, and whether the output changed."""

    kinds: Counter[str]
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


def read_conversations(path: Path) -> Iterator[Conversation]:
    """Read the conversations of ``path``. Raises DataError, naming file and line, for an invalid record."""
    for chunk in Source(path).chunks():
        found, rejects = conversations(chunk)
        for reject in rejects:
            raise DataError(f"{path}:{reject.line}: {reject.reason}", hint="launcher data convert can leave it out")
        yield from (conversation for _, conversation in found)


def conversations(chunk: Chunk) -> tuple[list[tuple[str, Conversation]], list[Reject]]:
    """Return kind and conversation of each record of ``chunk``, and the rejected records."""
    values = parse_fast(chunk)
    if values is not None:
        with suppress(RecordError):
            return [to_conversation(value, place) for place, value in enumerate(values, chunk.first_record)], []
    # Something is wrong in this chunk: one record at a time tells what and where.
    return _one_by_one(chunk)


def _one_by_one(chunk: Chunk) -> tuple[list[tuple[str, Conversation]], list[Reject]]:
    found: list[tuple[str, Conversation]] = []
    rejects: list[Reject] = []
    for item in parse(chunk):
        if isinstance(item, Reject):
            rejects.append(item)
            continue
        try:
            found.append(to_conversation(item.value, item.number))
        except RecordError as error:
            rejects.append(rejected(item, error))
    return found, rejects


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
            kinds = _write(out, Source(source), rejects, lines=lines, processes=processes, progress=progress)
        if not kinds:
            raise DataError(f"{source} holds no conversation")
        changed = outputs.put(built, target, force=force)
        outputs.put_or_remove(kept if rejects.count else None, rejects_path(target))
        return Converted(kinds=kinds, rejected=rejects.count, changed=changed)


def _write(
    out: BinaryIO, source: Source, rejects: Rejects, *, lines: bool, processes: int, progress: Progress
) -> Counter[str]:
    separator = b"\n" if lines else b",\n"
    kinds: Counter[str] = Counter()
    out.write(b"" if lines else b"[\n")
    for batch in ordered_map(lambda: _Converter(separator), source.chunks(), processes=processes):
        rejects.add(batch.rejects)
        kinds += batch.kinds
        out.write(batch.data)
        progress(source.position, source.size, kinds.total())
    if not lines and kinds:
        out.seek(-len(separator), 1)
        out.write(b"\n]\n")
    return kinds


class _Converter:
    """The job of each process: converts a chunk of records to conversations as JSON."""

    def __init__(self, separator: bytes) -> None:
        self._separator = separator

    def __call__(self, chunk: Chunk, /) -> _Batch:
        found, rejects = conversations(chunk)
        parts = [orjson.dumps(conversation.record()) for _, conversation in found]
        # The empty part makes the separator follow the last one too.
        data = self._separator.join([*parts, b""])
        return _Batch(data=data, kinds=Counter([kind for kind, _ in found]), rejects=rejects)
