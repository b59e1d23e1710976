#!/usr/bin/env bash
# Train the shipped base in the folder $1 and put it beside this file, with launcher on the PATH.
# One rank, so that every sum has one order: the same bits on one machine.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
mkdir -p "$1"
cd "$1"
rows() { launcher data preprocess "$1.jsonl" --tokenizer tokenizer.model --seq-length 44 --template plain -o "$1.mindrecord" --force; }
set -x
launcher data sample --kind base --size 40000 --seed 1 -o base.jsonl --force
launcher data sample --kind steps --size 1600 --seed 4 -o train.jsonl --force
launcher data sample --kind short --held-out --size 200 --seed 2 -o held_out.jsonl --force
launcher data tokenizer base.jsonl --vocab-size 400 -o tokenizer.model --force
rows base
launcher submit "$here/base.yaml" --cards 1
launcher merge-ckpt last -o merged --force
launcher eval merged --ask held_out.jsonl --score exact --max-new-tokens 12
cp merged/model.safetensors merged/launcher_model.json tokenizer.model train.jsonl "$here"
sha256sum "$here/model.safetensors"
