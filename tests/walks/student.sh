#!/usr/bin/env bash
# A student with a laptop has read a paper and wants to change one line of a recipe.
# STUDENT, TEACHER: folders of models. rows.jsonl, 64 rows, lies where this runs.
set -euo pipefail

gakd ls
gakd cp baselines/reverse_kl mine.py
sed -i 's/ReverseKL/TotalVariation/g' mine.py
python mine.py --help > help.txt
python mine.py --student "$STUDENT" --teacher "$TEACHER" --dataset rows.jsonl --output-dir runs/mine --student-layers 2 \
    --lora-rank 0 --batch-size 8 --max-length 96 --max-prompt-length 64 --steps 2 --evaluate-every 0 --examples 4 \
    --text-examples 2 --max-new-tokens 4
python -c "import gakd; print(gakd.metrics('runs/mine').columns.tolist())"
