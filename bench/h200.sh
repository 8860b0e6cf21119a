#!/bin/sh
# Measures on a GPU, into bench/results/h200.json: see bench/h200.py. Needs torch, transformers and peft alone.
#   bench/h200.sh [--tiny] [--out FILE] [--seconds 540] [stage ...]
set -eu
cd "$(dirname "$0")/.."
export PYTHONPATH=src PYTHONUNBUFFERED=1 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True TOKENIZERS_PARALLELISM=false
exec "${PYTHON:-python3}" -m bench.h200 "$@"
