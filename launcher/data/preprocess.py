"""Preprocess conversations or texts to a MindRecord of rows: in several processes, in order, whole or not at all.

Worker processes turn chunks of records into rows in the bytes of the file; the parent reads, counts and writes.
Chunks depend on the input alone, so the output does not depend on the number of processes. It is built in a
folder beside it, ``.NAME.partial``, where a journal records the progress every few seconds, so that an
interrupted run can be resumed.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from launcher import __version__
from launcher.common.rendering import write_atomic
from launcher.common.signals import handled
from launcher.data import outputs
from launcher.data.convert import Progress
from launcher.data.encode import Batch, Encoder, Half, Kept, count_shared, duplicates, in_bytes
from launcher.data.formats import unread_text
from launcher.data.info import DatasetInfo, read_info, read_stats, stats_path
from launcher.data.messages import Message
from launcher.data.mindrecord import COLUMNS, PACKED_COLUMNS, PackedRows, Page, ShardState, ShardWriter
from launcher.data.pool import ordered_map, useful_processes
from launcher.data.records import Chunk, Source
from launcher.data.rejects import Rejects, rejects_path
from launcher.data.rows import Laid, OpenRows, Overflow
from launcher.data.samples import Records, SamplesWriter, samples_path
from launcher.data.tally import Tally
from launcher.data.templates import get_template
from launcher.data.tokenizer import load_tokenizer
from launcher.errors import DataError, JobCancelled

_FORMAT = 3
_JOURNAL_EVERY_S = 5.0


@dataclass(frozen=True, kw_only=True)
class PreprocessOptions:
    """Options of preprocessing.

    ``seq_length`` in tokens, rows are one longer. ``kind``: "chat" for conversations in any format that
    ``convert`` knows, "text" for plain text or {"text": ...}. ``eval_fraction`` of the records, chosen by a
    hash of their id, goes to ``eval_path(target)``. ``packing``: samples share rows (``packing``). The last three
    options do not affect the rows.
    """

    source: Path
    tokenizer: Path
    target: Path
    seq_length: int
    template: str
    kind: Literal["chat", "text"] = "chat"
    overflow: Overflow = "truncate"
    shards: int = 1
    eval_fraction: float = 0.0
    dedup: bool = False
    packing: bool = False
    max_rejects: int = 0
    processes: int = 0
    resume: bool = False


def eval_path(target: Path) -> Path:
    """Return the path of the validation split of ``target``: train.eval.mindrecord for train.mindrecord."""
    return target.with_name(f"{target.stem}.eval{target.suffix}")


def preprocess(
    options: PreprocessOptions, *, force: bool, progress: Progress = lambda *_: None
) -> tuple[DatasetInfo, bool]:
    """Write the rows, their index and their statistics; return the dataset, and whether it was made now.

    ``progress`` is called with bytes read, bytes in total and rows.
    Raises DataError for a missing or wrong input, tokenizer or template and for too many bad records,
    OutputExistsError for an existing output of other inputs or options, JobCancelled when interrupted.
    """
    outputs.refuse_folder(options.target)
    encoder = make_encoder(options)
    existing = read_info(options.target)
    if existing and existing.fingerprint and existing.fingerprint == fingerprint(options, encoder):
        return existing, False
    if any(path.exists() for path in _names(options.target, options.shards)) and not force:
        raise outputs.OutputExistsError(options.target)
    with _workplace(options.target) as folder:
        _Run(options, encoder, folder, progress).to_the_end()
    made = read_info(options.target)
    if made is None:
        raise DataError(f"{options.target} was not written")
    return made, True


def make_encoder(options: PreprocessOptions) -> Encoder:
    """Return the encoder of ``options``. Raises DataError when tokenizer or template is missing or they do not fit."""
    tokenizer = load_tokenizer(options.tokenizer)
    template = get_template(options.template, Path(tokenizer.info.path)) if options.kind == "chat" else None
    if template:
        # Now rather than in a worker: does the tokenizer have all control tokens, is an answer marked?
        template.encode_prompt(tokenizer, "?")
        template.encode(tokenizer, (Message("user", "?"), Message("assistant", "?")))
    return Encoder(
        tokenizer=tokenizer,
        template=template,
        seq_length=options.seq_length,
        # Plain text has no answer that a cut could spoil, so nothing of it is dropped.
        overflow=options.overflow if options.kind == "chat" else "split",
        eval_fraction=options.eval_fraction,
        packing=options.packing,
    )


def fingerprint(options: PreprocessOptions, encoder: Encoder | None = None) -> str:
    """Return a hash of everything that decides the rows: the bytes of the input, tokenizer, template and options.

    The input is only read when it is not the file (by size and time) that the existing output was made from.
    """
    return _hash(
        _known_sha256(options) or outputs.file_sha256(options.source),
        options,
        encoder or make_encoder(options),
    )


def _hash(source_sha256: str, options: PreprocessOptions, encoder: Encoder) -> str:
    parts = [source_sha256, *_key(options, encoder)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _key(options: PreprocessOptions, encoder: Encoder) -> list[str]:
    template = encoder.template.source if encoder.template else ""
    numbers = (options.seq_length, options.shards, options.eval_fraction, options.dedup)
    return [
        str(_FORMAT),
        encoder.tokenizer.info.sha256,
        encoder.tokenizer.info.beside,
        template,
        options.kind,
        options.overflow,
        repr(numbers),
        *(["packing"] if options.packing else []),
    ]


def _known_sha256(options: PreprocessOptions) -> str | None:
    source = (read_stats(options.target) or {}).get("source")
    if isinstance(source, dict) and source.get("stat") == _stat(options.source):
        return str(source.get("sha256"))
    return None


def _stat(path: Path) -> list[Any]:
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return [str(path.resolve()), found.st_size, found.st_mtime_ns]


def _names(target: Path, shards: int) -> list[Path]:
    """Return the files of a dataset, named as by MindSpore's FileWriter."""
    if shards == 1:
        return [target]
    width = len(str(shards - 1))
    return [target.with_name(f"{target.name}{shard:0{width}}") for shard in range(shards)]


class _OtherRunError(DataError):
    """The interrupted run has other inputs or options. Its files are kept."""


@contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """Make and lock the folder in which ``target`` is built. It is kept when the run is interrupted, else removed."""
    folder = target.with_name(f".{target.name}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The folder itself is locked, so that no lock file is left behind.
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    except BlockingIOError:
        raise DataError(f"another run is writing {target}") from None
    # Before the other cases, which remove the folder: the interrupted run can still be resumed.
    except _OtherRunError:
        raise
    except KeyboardInterrupt as error:
        hint = "the same command with --resume goes on from there; without it, from the beginning"
        signum = error.signum if isinstance(error, _Interrupted) else signal.SIGINT
        raise JobCancelled(f"interrupted; {target} is not written", signum=signum, hint=hint) from error
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise DataError(f"cannot write {target}: {error.strerror}") from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


class _Interrupted(KeyboardInterrupt):
    """SIGINT, SIGTERM or SIGHUP came earlier and was deferred until now."""

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum = signum


@contextmanager
def _held_back() -> Iterator[Callable[[], None]]:
    """Defer SIGINT, SIGTERM and SIGHUP until the yielded function is called, which then raises _Interrupted.

    Half a batch written, or half of the files in place, would be worse than a second of delay. Masking signals
    is not enough: the kernel would deliver them to one of the threads of the pool.
    """
    came: list[int] = []

    def check() -> None:
        if came:
            raise _Interrupted(came[0])

    # Python installs handlers in the main thread only, and interrupts no other.
    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    with handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), lambda number, _: came.append(number)):
        yield check


class _Output:
    """One of the two outputs, training and validation: its shards and its counts."""

    def __init__(self, target: Path, folder: Path, options: PreprocessOptions, state: dict[str, Any] | None) -> None:
        self.target = target
        self.names = _names(target, options.shards)
        states = [_shard_state(shard) for shard in state["shards"]] if state else [None] * options.shards
        self.tally = Tally.restored(state["tally"]) if state else Tally()
        self._folder = folder
        self._seq_length = options.seq_length
        self.columns = PACKED_COLUMNS if options.packing else COLUMNS
        self.writers = [
            ShardWriter(folder / name.name, row_length=options.seq_length + 1, columns=self.columns, state=shard)
            for name, shard in zip(self.names, states, strict=True)
        ]
        self.open = OpenRows.restored(options.seq_length, state["open"]) if state else OpenRows(options.seq_length)
        self.samples = SamplesWriter(folder / samples_path(target).name, records=state["samples"] if state else 0)

    @property
    def rows(self) -> int:
        return sum(writer.state.rows for writer in self.writers)

    def add(self, half: Half) -> None:
        self.tally.add(half.counts, half.lengths)
        self._write(half.packed, half.records)
        self._lay(self.open.add(half.open))

    def _lay(self, laid: Laid | None) -> None:
        """Write rows of samples of several chunks."""
        if laid is not None:
            self.tally.counts.update(laid.counts)
            self._write(in_bytes(laid, self._seq_length, seams=True), laid.records)

    def _write(self, packed: PackedRows, records: Records) -> None:
        self.samples.append(records)
        data, sizes = memoryview(packed.data), packed.sizes
        if len(self.writers) == 1:
            self.writers[0].append(data, sizes, packed.saved_bytes)
            return
        # Row after row goes round the shards, so that they are equally long; the header's saved bytes with
        # them.
        ends = np.cumsum(sizes)
        first = self.rows
        for shard, writer in enumerate(self.writers):
            chosen = np.arange((shard - first) % len(self.writers), len(sizes), len(self.writers))
            parts = [data[end - size : end] for size, end in zip(sizes[chosen], ends[chosen], strict=True)]
            saved = packed.saved_bytes * len(chosen) // max(len(sizes), 1)
            writer.append(memoryview(b"".join(parts)), sizes[chosen], saved)

    def state(self) -> dict[str, Any]:
        for writer in self.writers:
            # The journal must never be ahead of the bytes that it describes.
            writer.flush()
        self.samples.flush()
        return {
            "open": self.open.state(),
            "samples": self.samples.records,
            "shards": [dataclasses.asdict(writer.state) for writer in self.writers],
            "tally": self.tally.state(),
        }

    def close(self) -> None:
        for writer in self.writers:
            writer.close()
        self.samples.close()

    def complete(self) -> None:
        """Write the rows that were still open."""
        if len(self.open.pieces.lengths):
            self._lay(self.open.rest())

    def finish(self) -> list[Path]:
        """Finish the shards; return their files, each index before its file, after the table of samples."""
        self.samples.close()
        for shard, writer in enumerate(self.writers):
            writer.finish([name.name for name in self.names], shard)
        built = [self._folder / name.name for name in self.names]
        return [self.samples.path, *(part for file in built for part in (file.with_name(f"{file.name}.db"), file))]


def _shard_state(state: dict[str, Any]) -> ShardState:
    pages = [Page(**page) for page in state["pages"]]
    return ShardState(pages=pages, saved_bytes=state["saved_bytes"])


def _empty(folder: Path) -> None:
    """Remove the files that an interrupted run left in ``folder``."""
    for path in folder.iterdir():
        path.unlink()


class _Run:
    """One run of preprocessing, resumed from the journal of an interrupted one if there is one."""

    def __init__(self, options: PreprocessOptions, encoder: Encoder, folder: Path, progress: Progress) -> None:
        self._options = options
        self._encoder = encoder
        self._folder = folder
        self._progress = progress
        self._source = Source(options.source, text=options.kind == "text" and _is_text(options.source))
        # Path, size and time stand for the input here: its hash is known only at the end.
        self._key = [*_key(options, encoder), *map(str, _stat(options.source))]
        state = self._journal() if options.resume else None
        if state is None:
            _empty(folder)
        self._done: int = state["batches"] if state else 0
        self._kinds: Counter[str] = Counter(state["kinds"] if state else {})
        self._unread: Counter[str] = Counter(state.get("unread", {}) if state else {})
        self._rejects = Rejects(
            options.source,
            folder / "rejects",
            most=options.max_rejects,
            keep=state["rejects_bytes"] if state else 0,
        )
        self._rejects.count = state["rejects"] if state else 0
        targets = [options.target, eval_path(options.target)] if options.eval_fraction else [options.target]
        states = state["outputs"] if state else [None] * len(targets)
        self._outputs = [_Output(target, folder, options, saved) for target, saved in zip(targets, states, strict=True)]

    def to_the_end(self) -> None:
        """Do the remaining work and move the results into place."""
        try:
            processes = self._options.processes or useful_processes(self._options.source)
            chunks = self._chunks(processes)
            with _held_back() as check:
                self._work(chunks, processes, check)
                self._count_shared(processes)
                self._publish()
        finally:
            self._rejects.close()
            for output in self._outputs:
                output.close()

    def _work(self, chunks: Iterator[tuple[Chunk, Kept | None]], processes: int, check: Callable[[], None]) -> None:
        written = time.monotonic()
        # Finished chunks are read again, for the hash of the input, but not encoded again.
        for batch in ordered_map(lambda: self._encoder, islice(chunks, self._done, None), processes=processes):
            self._add(batch)
            try:
                check()
            except _Interrupted:
                self._write_journal()
                raise
            if time.monotonic() - written > _JOURNAL_EVERY_S:
                self._write_journal()
                written = time.monotonic()
        for output in self._outputs:
            output.complete()
        if not self._outputs[0].rows:
            raise DataError(f"{self._options.source} gives no row to learn from", hint=self._why_no_row())

    def _chunks(self, processes: int) -> Iterator[tuple[Chunk, Kept | None]]:
        if not self._options.dedup:
            return ((chunk, None) for chunk in self._source.chunks())
        # A reading of its own: all records are compared before the first row is written.
        first_reading = Source(self._options.source, text=self._source.is_text)
        kept = duplicates(self._encoder, first_reading, processes=processes)
        return zip(self._source.chunks(), kept, strict=True)

    def _count_shared(self, processes: int) -> None:
        """Count held-out records that are also in training; with ``dedup`` there are none."""
        if self._options.eval_fraction and not self._options.dedup:
            again = Source(self._options.source, text=self._source.is_text)
            self._outputs[1].tally.counts["in_training"] = count_shared(self._encoder, again, processes=processes)

    def _add(self, batch: Batch) -> None:
        self._done += 1
        self._rejects.add(batch.rejects)
        self._kinds += batch.kinds
        self._unread += batch.unread
        for output, half in zip(self._outputs, batch.halves, strict=True):
            output.add(half)
        self._progress(self._source.position, self._source.size, sum(output.rows for output in self._outputs))

    def _why_no_row(self) -> str:
        counts = self._outputs[0].tally.counts
        if counts["dropped"] or counts["without_loss"]:
            return f"all are longer than --seq-length {self._options.seq_length} allows"
        return "is it the right file?"

    def _journal(self) -> dict[str, Any] | None:
        try:
            state: dict[str, Any] = json.loads((self._folder / "journal.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None
        if state["key"] != self._key:
            raise _OtherRunError(
                f"the interrupted run of {self._options.target} had another input or other options",
                hint="leave --resume out to begin anew",
            )
        return state

    def _write_journal(self) -> None:
        state = {
            "key": self._key,
            "batches": self._done,
            "kinds": dict(self._kinds),
            "unread": dict(self._unread),
            "rejects": self._rejects.count,
            "rejects_bytes": self._rejects.tell(),
            "outputs": [output.state() for output in self._outputs],
        }
        write_atomic(self._folder / "journal.json", json.dumps(state))

    def _publish(self) -> None:
        """Move files into place: statistics last, because they mark a complete dataset."""
        # finish() changes the files, so that from here on nothing can be resumed.
        (self._folder / "journal.json").unlink(missing_ok=True)
        self._rejects.tell()
        built = [output.finish() for output in self._outputs]
        # The older dataset may have a validation split even if this run has none.
        for target in (self._options.target, eval_path(self._options.target)):
            remove_dataset(target)
        for output, parts in zip(self._outputs, built, strict=True):
            for part in parts:
                # Otherwise a crash could keep the new name without the bytes.
                outputs.flush(part)
                part.replace(output.target.with_name(part.name))
        kept = self._folder / "rejects"
        outputs.put_or_remove(kept if self._rejects.count else None, rejects_path(self._options.target))
        # Training comes last: its statistics stand for the validation split as well.
        for output in reversed(self._outputs):
            write_atomic(
                stats_path(output.target),
                json.dumps(self._stats(output), ensure_ascii=False, indent=2) + "\n",
            )

    def _stats(self, output: _Output) -> dict[str, Any]:
        options, tally = self._options, output.tally
        return {
            "format": _FORMAT,
            "launcher": __version__,
            "fingerprint": _hash(self._source.sha256, options, self._encoder),
            "files": [name.name for name in output.names],
            "rows": output.rows,
            "seq_length": options.seq_length,
            "columns": list(output.columns),
            "kind": options.kind,
            "template": self._encoder.template.name if self._encoder.template else None,
            "tokenizer": dataclasses.asdict(self._encoder.tokenizer.info),
            "source": {"stat": _stat(options.source), "sha256": self._source.sha256},
            "options": {
                key: getattr(options, key) for key in ("overflow", "shards", "eval_fraction", "dedup", "packing")
            },
            "formats": dict(self._kinds),
            "counts": {**dict.fromkeys(_COUNTED, 0), **tally.counts, "rejected": self._rejects.count},
            "lengths": tally.length_stats(),
            "warnings": [*tally.warnings(), *([unread_text(self._unread)] if self._unread else [])],
        }


_COUNTED = (
    "conversations",
    "rows",
    "tokens",
    "loss_tokens",
    "padding",
    "truncated",
    "split",
    "dropped",
    "without_loss",
    "lost_tokens",
    "duplicates",
)


def remove_dataset(target: Path) -> None:
    """Remove an older dataset at ``target``: statistics first, so that nothing half-removed looks whole."""
    stats = read_stats(target) or {}
    stats_path(target).unlink(missing_ok=True)
    samples_path(target).unlink(missing_ok=True)
    for name in {target.name, *map(str, stats.get("files", ()))}:
        # The statistics are a file that anyone can edit: only names in this folder are removed.
        file = target.with_name(Path(name).name)
        file.unlink(missing_ok=True)
        file.with_name(f"{file.name}.db").unlink(missing_ok=True)


def _is_text(path: Path) -> bool:
    return not path.name.removesuffix(".gz").endswith((".json", ".jsonl"))
