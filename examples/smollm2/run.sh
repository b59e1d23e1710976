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
launcher submit run.yaml --cards 2
launcher merge-ckpt last -o tuned --force
launcher eval smollm2 tuned --ask held_out.jsonl --score contains --max-new-tokens 20 -o answers.json
python show.py answers.json
