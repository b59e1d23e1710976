"""What was recognised in records: their shapes, the fields that were read, and those that were not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launcher.common.nearest import nearest
from launcher.data.formats import holds_text, read_keys, unread
from launcher.data.reading import EVERYTHING, Reading
from launcher.data.turns import is_number
from launcher.errors import DataError

_SHOWN_KEYS = 6
_KEPT = ("kinds", "read", "unread", "numbers", "ignored")
_SHOWN_CHARACTERS = 40


class LostTextError(DataError):
    """The fields ``names`` hold text that no conversation has a place for."""

    def __init__(self, names: Sequence[str], message: str, *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.names = tuple(names)


@dataclass(kw_only=True)
class Seen:
    """Counts of records by shape, by field that was read, by field that was not, and by field whose text would be lost.

    ``numbers``: by field, numbers that are taken as text. ``ignored``: by field, records that have one that is ignored.
    ``examples``: of each field of ``lost``, the beginning of one of its texts.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    read: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    numbers: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, other: Seen) -> None:
        self.kinds.update(other.kinds)
        self.read.update(other.read)
        self.unread.update(other.unread)
        self.lost.update(other.lost)
        self.numbers.update(other.numbers)
        self.ignored.update(other.ignored)
        self.examples = {**other.examples, **self.examples}

    def check(self, shown: str) -> None:
        """Raise DataError when a text of ``shown``, a file, would be lost."""
        if not self.lost:
            return
        names = sorted(self.lost, key=lambda name: -self.lost[name])
        records = self.kinds.total()
        told = [
            f"{name} (in {self.lost[name]:,} of {records:,} records, such as {self.examples[name]!r})"
            for name in names[:_SHOWN_KEYS]
        ]
        more = f" and {len(names) - _SHOWN_KEYS} more" if len(names) > _SHOWN_KEYS else ""
        ignored = ",".join(names)
        raise LostTextError(
            names,
            f"{shown}: text that no part of a conversation is made of: {', '.join(told)}{more}",
            hint=f"--ignore '{ignored}' leaves it out, in a run spec data.train: [{{path: ..., ignore: [{ignored}]}}]; "
            "or say what it is: --columns system=FIELD,question=FIELD,answer=FIELD",
        )

    def state(self) -> dict[str, Any]:
        """Return the counts as JSON, for ``restored``."""
        return {name: dict(getattr(self, name)) for name in _KEPT}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Seen:
        kinds, *others = (Counter(state.get(name, {})) for name in _KEPT)
        read, unread, numbers, ignored = others
        return cls(kinds=kinds, read=read, unread=unread, numbers=numbers, ignored=ignored)

    def notes(self, readings: Iterable[Reading], left_out: Iterable[str] = ()) -> Iterator[str]:
        """Yield what was taken as text, and which names that are to be ignored no record has.

        ``left_out``: columns of tables that were ignored unread.
        """
        for name, count in self.numbers.items():
            yield f"{name}: {count:,} number{'s are' if count > 1 else ' is'} taken as text"
        known = {*self.read, *self.unread, *self.ignored, *left_out}
        for name in dict.fromkeys(name for reading in readings for name in reading.ignore):
            if name not in known and name != EVERYTHING:
                close = nearest(name, known)
                yield f"ignore: no record has a field {name!r}{f'; did you mean {close}?' if close else ''}"


def seen_in(kinds: Iterable[str], values: Sequence[Any], reading: Reading) -> Seen:
    """Return what was recognised in ``values``, good records, each of one of ``kinds``."""
    seen = Seen()
    patterns: Counter[tuple[str, tuple[str, ...]]] = Counter()
    numbers: Counter[tuple[str, str]] = Counter()
    for kind, value in zip(kinds, values, strict=True):
        patterns[kind, tuple(value)] += 1
        numbers.update((kind, name) for name, item in value.items() if is_number(item))
        for name, item in unread(kind, value, reading):
            _count(seen, name, item, reading)
    for (kind, keys), count in patterns.items():
        seen.kinds[kind] += count
        for key in read_keys(kind, keys, reading):
            seen.read[key] += count
        seen.ignored.update({key: count for key in keys if reading.ignores(key)})
    for (kind, name), count in numbers.items():
        if name != reading.columns.get("id", "id") and read_keys(kind, [name], reading):
            seen.numbers[name] += count
    return seen


def _count(seen: Seen, name: str, item: Any, reading: Reading) -> None:
    if reading.ignores(name) or not holds_text(item):
        seen.unread[name] += 1
        return
    seen.lost[name] += 1
    if name not in seen.examples:
        text = " ".join(str(item).split())
        seen.examples[name] = text[:_SHOWN_CHARACTERS] + ("..." if len(text) > _SHOWN_CHARACTERS else "")


def read_text(read: Mapping[str, int], unread_: Mapping[str, int]) -> str:
    """Return which fields were read and which were not, the commonest first."""
    parts = [f"read: {_listed(read)}"] if read else []
    if unread_:
        counted = {f"{name} (in {count:,} record{'s' * (count != 1)})": count for name, count in unread_.items()}
        parts.append(f"not read: {_listed(counted)}")
    return "; ".join(parts)


def _listed(counts: Mapping[str, int]) -> str:
    names = sorted(counts, key=lambda name: -counts[name])
    more = f" and {len(names) - _SHOWN_KEYS} more" if len(names) > _SHOWN_KEYS else ""
    return ", ".join(names[:_SHOWN_KEYS]) + more
