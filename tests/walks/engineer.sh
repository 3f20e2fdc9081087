#!/usr/bin/env bash
# An engineer has a model that is too large, and a file of what people ask it. A small one has to come out.
# STUDENT, TEACHER: folders of models. rows.jsonl, 64 rows, lies where this runs.
set -euo pipefail

gakd --version
gakd --help
gakd run gakd --help > help.txt
gakd doctor --student "$STUDENT" --teacher "$TEACHER" || true  # its status is what it thinks of this machine
gakd data --dataset rows.jsonl --student "$STUDENT"
gakd plan --student "$STUDENT" --teacher "$TEACHER" --length 96

# A short try with a constant rate, which then goes on for longer.
small=(--student-layers 2 --lora-rank 0 --batch-size 8 --learning-rate 3e-3 --max-length 96 --max-prompt-length 64
       --lr-schedule constant --readout-width 16 --discriminator-width 16 --examples 4 --text-examples 2 --max-new-tokens 4)
gakd run gakd --student "$STUDENT" --teacher "$TEACHER" --dataset rows.jsonl --output-dir runs/game "${small[@]}" \
    --kl-temperature 2 --steps 4 --evaluate-every 0 --export-dtype bfloat16
gakd run gakd --student "$STUDENT" --teacher "$TEACHER" --dataset rows.jsonl --output-dir runs/game "${small[@]}" \
    --kl-temperature 2 --steps 8 --evaluate-every 0 --export-dtype bfloat16 --resume

# The teacher's work, done once, beside the plain method.
gakd cache --teacher "$TEACHER" --dataset rows.jsonl --max-length 96 --max-prompt-length 64 --output cache
gakd run baselines/reverse_kl --student "$STUDENT" --teacher "$TEACHER" --teacher-cache cache --dataset rows.jsonl --output-dir runs/plain \
    --student-layers 2 --lora-rank 0 --batch-size 8 --learning-rate 3e-3 --max-length 96 --max-prompt-length 64 --steps 8 \
    --evaluate-every 0 --examples 4 --text-examples 2 --max-new-tokens 4

gakd report runs/game runs/plain --output report.html
gakd evaluate --students runs/game/student runs/plain/student --teacher "$TEACHER" --dataset rows.jsonl \
    --examples 4 --max-new-tokens 4 --max-length 96 --max-prompt-length 64
gakd generate --model runs/game/student --dataset rows.jsonl --output written.jsonl --max-new-tokens 4 --examples 4
echo "train 1" | gakd chat runs/game/student --teacher "$TEACHER" --max-new-tokens 4
