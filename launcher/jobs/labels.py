"""What people say about a job: tags and a note, in a file of their own, as job.json has another writer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from launcher.common.atomic import write_atomic
from launcher.common.json_files import json_or_empty
from launcher.errors import SpecError
from launcher.jobs.paths import LABELS, JobPaths

# Tags are listed with commas between them, and an option begins with "-".
_TAG = re.compile(r"[^\W_][^\s,]{0,63}")
_LONGEST_NOTE = 2000


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The tags of a job, in the order in which they were given, and a note."""

    tags: tuple[str, ...] = ()
    note: str = ""

    def __bool__(self) -> bool:
        return bool(self.tags or self.note)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False) + "\n"

    def to_dict(self) -> dict[str, object]:
        return {"tags": list(self.tags), "note": self.note}

    def changed(self, *, add: Iterable[str] = (), remove: Iterable[str] = (), note: str | None = None) -> Labels:
        """Return the labels with tags added and removed and, unless None, another note. Raises SpecError."""
        gone = set(remove)
        unknown = [tag for tag in gone if tag not in self.tags]
        if unknown:
            raise SpecError(f"no tag {unknown[0]!r} to remove", hint=f"its tags: {', '.join(self.tags) or 'none'}")
        tags = dict.fromkeys([*(tag for tag in self.tags if tag not in gone), *map(checked_tag, add)])
        return replace(self, tags=tuple(tags), note=self.note if note is None else checked_note(note))


def checked_tag(text: str) -> str:
    """Return ``text``, which is to be a tag. Raises SpecError when it is none."""
    if not _TAG.fullmatch(text):
        raise SpecError(
            f"{text!r} is no tag", hint="a letter or digit first, no blanks and no commas, at most 64 characters"
        )
    return text


def checked_note(text: str) -> str:
    """Return ``text`` in one line. Raises SpecError when it is too long."""
    line = " ".join(text.split())
    if len(line) > _LONGEST_NOTE:
        raise SpecError(f"a note of {len(line)} characters", hint=f"at most {_LONGEST_NOTE}")
    return line


def read_labels(paths: JobPaths) -> Labels:
    """Return the labels of the job; none where there is no file, and without what is no tag and no note in it."""
    found = json_or_empty(paths.text_of(LABELS))
    tags, note = found.get("tags"), found.get("note")
    known = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    return Labels(tags=tuple(known), note=note if isinstance(note, str) else "")


def write_labels(paths: JobPaths, labels: Labels) -> None:
    """Write the labels into the job's folder, which must exist."""
    write_atomic(paths.labels, labels.to_json(), parents=False)
