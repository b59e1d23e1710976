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
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from launcher import __version__
from launcher.common.rendering import write_atomic
from launcher.common.signals import handled
from launcher.data import outputs
from launcher.data.convert import Progress
from launcher.data.encode import Batch, Choice, Encoder, Half, count_shared, in_bytes
from launcher.data.files import InputFile
from launcher.data.info import DatasetInfo, read_info, read_stats, shared_warning, stats_path, whole_info
from launcher.data.messages import Message
from launcher.data.mindrecord import COLUMNS, PACKED_COLUMNS, PackedRows, Page, ShardState, ShardWriter
from launcher.data.options import PreprocessOptions, eval_path
from launcher.data.picking import Picked, pick
from launcher.data.pool import ordered_map, useful_processes
from launcher.data.records import Chunk
from launcher.data.rejects import Rejects, rejects_path
from launcher.data.rows import Laid, OpenRows
from launcher.data.samples import Records, SamplesWriter, samples_path
from launcher.data.seen import Seen
from launcher.data.sources import Sources, joined_sha256
from launcher.data.tally import Tally
from launcher.data.templates import get_template
from launcher.data.tokenizer import load_tokenizer
from launcher.errors import DataError, JobCancelled

_FORMAT = 3
_JOURNAL = "journal 2"
_JOURNAL_EVERY_S = 5.0


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
    existing = _made_before(options, force=force)
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


def _made_before(options: PreprocessOptions, *, force: bool) -> DatasetInfo | None:
    """Return the dataset that is there; with ``force`` none that breaks off. Raises DataError for that without."""
    read = whole_info if force else read_info
    found = read(options.target)
    return None if options.eval_fraction and read(eval_path(options.target)) is None else found


def make_encoder(options: PreprocessOptions) -> Encoder:
    """Return the encoder of ``options``. Raises DataError when tokenizer or template is missing or they do not fit."""
    tokenizer = load_tokenizer(options.tokenizer)
    template = get_template(options.template, Path(tokenizer.info.path)) if options.kind == "chat" else None
    if template:
        # Now rather than in a worker: does the tokenizer have all control tokens, is an answer marked?
        template.encode_prompt(tokenizer, "?")
        template.encode(tokenizer, (Message("user", "?"), Message("assistant", "?")))
    no_tools = "" if template is None or template.takes_tools else f"template {template.name} has no place for tools"
    return Encoder(
        tokenizer=tokenizer,
        template=template,
        seq_length=options.seq_length,
        # Plain text has no answer that a cut could spoil, so nothing of it is dropped.
        overflow=options.overflow if options.kind == "chat" else "split",
        eval_fraction=options.eval_fraction,
        packing=options.packing,
        readings=tuple(dataclasses.replace(file.reading, no_tools=no_tools) for file in options.files),
        train_on=options.train_on,
    )


def fingerprint(options: PreprocessOptions, encoder: Encoder | None = None) -> str:
    """Return a hash of everything that decides the rows: the bytes of the input, tokenizer, template and options.

    The input is only read when it is not the file (by size and time) that the existing output was made from.
    """
    return _hash(
        _known_sha256(options) or joined_sha256([outputs.file_sha256(file.path) for file in options.files]),
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
        *_more_of_key(options),
    ]


def _more_of_key(options: PreprocessOptions) -> list[str]:
    """Return what is not as it is unless it is asked for: without it, keys stay those of earlier versions."""
    parts = ["packing"] if options.packing else []
    if len(options.files) > 1 or options.weights:
        parts.append(repr([file.source for file in options.files]))
    if options.weights:
        parts.append(repr((options.weights, options.mix)))
    if options.train_on != "all":
        parts.append(options.train_on)
    readings = [file.reading.key for file in options.files]
    return [*parts, repr(readings)] if any(readings) else parts


def _known_sha256(options: PreprocessOptions) -> str | None:
    source = (read_stats(options.target) or {}).get("source")
    if isinstance(source, dict) and source.get("stat") == _stat(options):
        return str(source.get("sha256"))
    return None


def _stat(options: PreprocessOptions) -> list[Any]:
    """Return path, size and time of the only file, or a list of them for several."""
    stats = [_stat_of(file) for file in options.files]
    return stats[0] if len(stats) == 1 else stats


def _stat_of(file: InputFile) -> list[Any]:
    try:
        found = file.path.stat()
    except OSError as error:
        raise DataError(f"cannot read {file.shown}: {error.strerror}") from error
    return [str(file.path.resolve()), found.st_size, found.st_mtime_ns]


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
        self._sources = Sources(options.files)
        # Path, size and time stand for the input here: its hash is known only at the end.
        self._key = [_JOURNAL, *_key(options, encoder), *map(str, _stat(options))]
        state = self._journal() if options.resume else None
        if state is None:
            _empty(folder)
        self._done: int = state["batches"] if state else 0
        self._seen = Seen.restored(state) if state else Seen()
        self._shares = [Counter(share) for share in state["shares"]] if state else [Counter() for _ in options.sources]
        self._picked: Picked | None = None
        # Hashes of all records, for the number of duplicates; in a file, so that they survive an interruption.
        self._digests = (folder / "digests").open("r+b" if state else "wb")
        self._digests.truncate(state["digests_bytes"] if state else 0)
        self._digests.seek(0, os.SEEK_END)
        self._rejects = Rejects(
            options.files,
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
            processes = self._options.processes or useful_processes(self._options.found.text_bytes)
            chunks = self._chunks(processes)
            with _held_back() as check:
                self._work(chunks, processes, check)
                self._count_shared(processes)
                self._publish()
        finally:
            self._rejects.close()
            self._digests.close()
            for output in self._outputs:
                output.close()

    def _work(self, chunks: Iterator[tuple[Chunk, Choice | None]], processes: int, check: Callable[[], None]) -> None:
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
            raise DataError(f"{self._options.found.shown} gives no row to learn from", hint=self._why_no_row())

    def _chunks(self, processes: int) -> Iterator[tuple[Chunk, Choice | None]]:
        options = self._options
        if not (options.dedup or options.weights):
            return ((chunk, None) for chunk in self._sources.chunks())
        # A reading of its own: all records are compared and counted before the first row is written.
        self._picked = pick(
            self._encoder,
            options.files,
            weights=options.weights,
            mix=options.mix,
            dedup=options.dedup,
            processes=processes,
        )
        return self._picked.chunks(self._sources)

    def _count_shared(self, processes: int) -> None:
        """Count held-out records that are also in training; with ``dedup`` there are none."""
        if self._options.eval_fraction and not self._options.dedup:
            again = Sources(self._options.files)
            self._outputs[1].tally.counts["in_training"] = count_shared(self._encoder, again, processes=processes)

    def _add(self, batch: Batch) -> None:
        self._done += 1
        file = self._options.files[batch.file]
        self._rejects.add(batch.rejects, batch.file, good=batch.seen.kinds.total())
        batch.seen.check(file.shown)
        self._refuse_too_long(batch)
        self._seen.add(batch.seen)
        self._digests.write(batch.digests.tobytes())
        self._shares[file.source].update({key: batch.halves[0].counts[key] for key in _SHARED})
        for output, half in zip(self._outputs, batch.halves, strict=True):
            output.add(half)
        self._progress(self._sources.position, self._sources.size, sum(output.rows for output in self._outputs))

    def _refuse_too_long(self, batch: Batch) -> None:
        if not batch.too_long:
            return
        origin, length = batch.too_long[0]
        most = max(length for _, length in batch.too_long)
        row = self._options.seq_length + 1
        where = self._options.files[batch.file].place(origin.line - 1, origin.line)
        raise DataError(
            f"{where}: {length:,} tokens, and a row has {row:,}"
            + (
                f"; {len(batch.too_long):,} such samples near it, up to {most:,} tokens"
                if len(batch.too_long) > 1
                else ""
            ),
            hint=f"--seq-length {most - 1} and more keeps them whole; or --too-long cut, drop or split",
        )

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
            **self._seen.state(),
            "shares": [dict(share) for share in self._shares],
            "rejects": self._rejects.count,
            "rejects_bytes": self._rejects.tell(),
            "digests_bytes": self._digests_bytes(),
            "outputs": [output.state() for output in self._outputs],
        }
        write_atomic(self._folder / "journal.json", json.dumps(state))

    def _digests_bytes(self) -> int:
        self._digests.flush()
        return self._digests.tell()

    def _repeated(self) -> int:
        """Return how many records were there before, in any source."""
        if self._picked:
            return self._picked.repeated
        self._digests.flush()
        found = np.fromfile(self._folder / "digests", dtype=np.uint64)
        return len(found) - len(np.unique(found))

    def _publish(self) -> None:
        """Move files into place: statistics last, because they mark a complete dataset."""
        # finish() changes the files, so that from here on nothing can be resumed.
        (self._folder / "journal.json").unlink(missing_ok=True)
        self._rejects.tell()
        self._outputs[0].tally.counts["repeated"] = self._repeated()
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
            "fingerprint": _hash(self._sources.sha256, options, self._encoder),
            "files": [name.name for name in output.names],
            "rows": output.rows,
            "seq_length": options.seq_length,
            "columns": list(output.columns),
            "kind": options.kind,
            "template": self._encoder.template.name if self._encoder.template else None,
            "tokenizer": dataclasses.asdict(self._encoder.tokenizer.info),
            "source": {"stat": _stat(options), "sha256": self._sources.sha256},
            "inputs": [file.shown for file in options.files],
            "options": {key: getattr(options, key) for key in _SHOWN_OPTIONS},
            "formats": dict(self._seen.kinds),
            "fields": {"read": dict(self._seen.read), "unread": dict(self._seen.unread)},
            "sources": self._mixed(),
            "notes": [*options.found.notes, *self._sources.notes, *self._notes()],
            "counts": {**dict.fromkeys(_COUNTED, 0), **tally.counts, "rejected": self._rejects.count},
            "lengths": tally.length_stats(),
            "warnings": [*tally.warnings(), *tally.cut_warnings(options.seq_length), *self._leaks()],
        }

    def _leaks(self) -> list[str]:
        return list(filter(None, [shared_warning(output.tally.counts) for output in self._outputs]))

    def _notes(self) -> Iterator[str]:
        return self._seen.notes((file.reading for file in self._options.files), self._sources.left_out)

    def _mixed(self) -> list[dict[str, Any]]:
        """Return the part of each source in training: its samples, and their tokens before any is cut."""
        total = sum(share["text_tokens"] for share in self._shares) or 1
        return [
            {
                "path": source.shown or source.path,
                "weight": source.weight,
                "samples": share["conversations"],
                "tokens": share["text_tokens"],
                "share": share["text_tokens"] / total,
                **(self._picked.told(number) if self._picked else {}),
            }
            for number, (source, share) in enumerate(zip(self._options.sources, self._shares, strict=True))
        ]


_SHARED = ("conversations", "text_tokens")
_SHOWN_OPTIONS = ("overflow", "shards", "eval_fraction", "dedup", "packing", "train_on")

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
    "repeated",
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
