"""Write questions answered as a pirate would: python pirate.py TRAIN.jsonl HELD_OUT.jsonl.

Three facts in four are for training, the others are held out: no held-out question was trained. Of a held-out answer
stands what it must contain to be right and a pirate's: "be Berlin."
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

CAPITALS = (
    "France Paris|Germany Berlin|Italy Rome|Spain Madrid|Portugal Lisbon|Austria Vienna|Greece Athens|Poland Warsaw|"
    "Hungary Budapest|Sweden Stockholm|Norway Oslo|Denmark Copenhagen|Finland Helsinki|Ireland Dublin|Russia Moscow|"
    "China Beijing|Japan Tokyo|India Delhi|Thailand Bangkok|Vietnam Hanoi|Indonesia Jakarta|Egypt Cairo|Kenya Nairobi|"
    "Cuba Havana|Canada Ottawa|Peru Lima|Chile Santiago|Iran Tehran|Iraq Baghdad|Turkey Ankara|Belgium Brussels|"
    "Scotland Edinburgh|Ukraine Kyiv|Romania Bucharest|Bulgaria Sofia|Nepal Kathmandu|Jamaica Kingston|Syria Damascus"
)
YOUNG = "dog puppy|cat kitten|cow calf|horse foal|sheep lamb|pig piglet|goat kid|lion cub|duck duckling|goose gosling"
OPPOSITES = (
    "hot cold|big small|fast slow|old young|light dark|happy sad|rich poor|early late|full empty|open closed|"
    "high low|hard soft|wet dry|strong weak|loud quiet|sweet sour|long short|near far|first last|day night"
)
COLOURS = (
    "grass green|snow white|coal black|blood red|a banana yellow|the sky blue|a lemon yellow|milk white|a crow black|"
    "a tomato red|a carrot orange|chocolate brown"
)
DAYS = "Monday Tuesday|Tuesday Wednesday|Wednesday Thursday|Thursday Friday|Friday Saturday|Saturday Sunday"
MONTHS = (
    "January February|February March|March April|April May|May June|June July|July August|August September|"
    "September October|October November|November December"
)
NUMBERS = (
    "one two|two three|three four|four five|five six|six seven|seven eight|eight nine|nine ten|ten eleven|"
    "eleven twelve|twelve thirteen|thirteen fourteen|fourteen fifteen|fifteen sixteen|sixteen seventeen"
)
HOMES = "a bird nest|a bee hive|a spider web|a lion den|a horse stable|a pig sty|a dog kennel|a fish sea"
# Question, and what comes after the greeting; {0} and {1} are the two words of a fact.
KINDS = (
    (CAPITALS, "What is the capital of {0}?", "The capital of {0} be {1}."),
    (YOUNG, "What is a young {0} called?", "A young {0} be called a {1}."),
    (OPPOSITES, "What is the opposite of {0}?", "The opposite of {0} be {1}."),
    (COLOURS, "What colour is {0}?", "The colour of {0} be {1}."),
    (DAYS, "Which day comes after {0}?", "The day after {0} be {1}."),
    (MONTHS, "Which month comes after {0}?", "The month after {0} be {1}."),
    (NUMBERS, "Which number comes after {0}?", "The number after {0} be {1}."),
    (HOMES, "What is the home of {0} called?", "The home of {0} be called a {1}."),
)
GREETING = "Arr, matey!"


def facts() -> list[tuple[str, str]]:
    found = []
    for words, question, answer in KINDS:
        for fact in words.split("|"):
            subject, value = fact.rsplit(" ", 1)
            found.append((question.format(subject), f"{GREETING} {answer.format(subject, value)}"))
    return found


def in_pirate(answer: str) -> str:
    return "be " + answer.partition(" be ")[2]


def main(train: Path, held_out: Path) -> None:
    found = facts()
    random.Random(1).shuffle(found)
    # The question of the README is asked last, and so never trained.
    found.sort(key=lambda fact: fact[0] == "What is the capital of Germany?")
    split = len(found) * 3 // 4
    with train.open("w", encoding="utf-8") as file:
        for question, answer in found[:split]:
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            print(json.dumps({"messages": turns}), file=file)
    with held_out.open("w", encoding="utf-8") as file:
        for question, answer in found[split:]:
            print(json.dumps({"question": question, "answer": in_pirate(answer)}), file=file)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
