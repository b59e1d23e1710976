"""Sample data of a run spec: made once and cached under a hash of its options."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher import __version__
from launcher.common.folders import made_once
from launcher.common.rendering import write_atomic
from launcher.common.resources import cache_root
from launcher.data.info import stats_path
from launcher.errors import DataError


@dataclass(frozen=True, kw_only=True)
class SampleSet:
    """School arithmetic as training rows with its tokenizer. ``seq_length`` in tokens; rows are one longer."""

    size: int
    seed: int
    template: str
    vocab_size: int
    seq_length: int
    packing: bool = False

    @property
    def folder(self) -> Path:
        about = {key: value for key, value in asdict(self).items() if key != "packing" or value}
        text = json.dumps({**about, "launcher": __version__}, sort_keys=True)
        return cache_root() / "samples" / hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def dataset(self) -> Path:
        return self.folder / "train.mindrecord"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer.model"

    @property
    def rows(self) -> int | None:
        """Return the number of rows, one per problem: none is so long that its whole answer is cut off.

        None for packed ones, whose number is known once they are made.
        """
        return None if self.packing else self.size

    def exists(self) -> bool:
        return self.folder.is_dir()

    def describe(self) -> str:
        return (
            f"making {self.size} sample rows in {self.folder}" if self.rows else f"packing sample rows in {self.folder}"
        )

    def make(self) -> None:
        """Make the folder, whole or not at all. If several processes make it at once, the first one wins."""
        with made_once(self.folder) as scratch:
            self._fill(scratch)
            self._name_final_places(scratch)
        if not self.exists():
            raise DataError(f"cannot put the sample rows into {self.folder}", hint="look at the disk it is on")

    def _name_final_places(self, scratch: Path) -> None:
        """Replace the scratch folder by the final one in the statistics, which name files."""
        stats = stats_path(scratch / self.dataset.name)
        text = stats.read_text(encoding="utf-8")
        write_atomic(stats, text.replace(str(scratch), str(self.folder)))

    def _fill(self, folder: Path) -> None:
        from launcher.data.convert import convert
        from launcher.data.options import PreprocessOptions
        from launcher.data.preprocess import preprocess
        from launcher.data.sample import sample_lines
        from launcher.data.tokenizer import train_tokenizer

        raw, conversations = folder / "math.jsonl", folder / "conversations.json"
        raw.write_text("".join(sample_lines(self.size, self.seed)), encoding="utf-8")
        convert(raw, conversations, force=False)
        train_tokenizer(_texts(conversations), folder / "tokenizer.model", vocab_size=self.vocab_size)
        options = PreprocessOptions(
            source=conversations,
            tokenizer=folder / "tokenizer.model",
            target=folder / "train.mindrecord",
            seq_length=self.seq_length,
            template=self.template,
            packing=self.packing,
        )
        preprocess(options, force=False)


def _texts(conversations: Path) -> Iterator[str]:
    from launcher.data.convert import read_conversations

    return (message.content for conversation in read_conversations(conversations) for message in conversation.messages)
