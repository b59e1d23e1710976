"""Count answers that are right, and those in pirate's speech: python count.py HELD_OUT.jsonl ANSWERS.jsonl..."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def read(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def main(held_out: str, *answers: str) -> None:
    right = {asked["prompt"]: asked["right"].lower() for asked in read(held_out)}
    for file in answers:
        texts = [(right[answer["prompt"]], answer["text"].lower()) for answer in read(file)]
        is_right = [value in text for value, text in texts]
        is_pirate = ["arr" in text and " be " in text for _, text in texts]
        both = sum(map(all, zip(is_right, is_pirate, strict=True)))
        print(f"{file}: {sum(is_right)} of {len(texts)} right, {sum(is_pirate)} as a pirate, {both} both")


if __name__ == "__main__":
    main(*sys.argv[1:])
