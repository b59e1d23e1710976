"""Print the last questions of an evaluation with the answer of each model: python show.py ANSWERS.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

SHOWN = 4


def main(path: Path) -> None:
    for asked in json.loads(path.read_text(encoding="utf-8"))["questions"][-SHOWN:]:
        print(f"\n> {asked['question']}")
        for answer in asked["answers"]:
            first = answer["text"].partition("\n")[0]
            print(f"  {answer['model']}: {first}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
