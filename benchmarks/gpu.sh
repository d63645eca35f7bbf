#!/usr/bin/env bash
# The training step on a GPU: small and base, rows of 128 and 512, XLA's and cuDNN's attention, each beside the peer (compiled, bfloat16,
# SDPA). Writes a JSON file each into the folder given (default: benchmarks/results) and prints the tables. About ten minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
results=${1:-benchmarks/results}
python=${PYTHON:-python}
mkdir -p "$results"
card=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr ' A-Z' '-a-z')

for run in small:128:512 small:512:128 base:128:256 base:512:64; do
  IFS=: read -r size length batch <<<"$run"
  for attention in xla cudnn; do
    "$python" benchmarks/train_step.py --size="$size" --length="$length" --batch="$batch" --attention="$attention" --dtype=bfloat16 \
      --compile --rounds=5 --json="$results/train_step-$card-$size-$length-$attention.json" || echo "failed: $size $length $attention" >&2
  done
done
