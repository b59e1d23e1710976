#!/usr/bin/env bash
# The whole example in the folder $1, with launcher on the PATH; each command is shown as it would be typed.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
mkdir -p "$1"
cd "$1"
cp "$here"/*.py "$here/run.yaml" .
set -x
[ -d smollm2 ] || python make_folder.py smollm2
python pirate.py train.jsonl held_out.jsonl
launcher infer smollm2 --file held_out.jsonl --max-new-tokens 24 --format jsonl > before.jsonl
launcher submit run.yaml --cards 2
launcher merge-ckpt last
launcher infer last --file held_out.jsonl --max-new-tokens 24 --format jsonl > after.jsonl
python count.py held_out.jsonl before.jsonl after.jsonl
launcher infer last --prompt "What is the capital of Germany?" --max-new-tokens 24
