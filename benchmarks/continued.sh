#!/usr/bin/env bash
# The curve in docs/continued.md: a run exported for transformers, gone on from there on other text, beside one from scratch on the same text.
#   benchmarks/continued.sh RUN TEXT OUT
# RUN: a run of configs/mini.py; TEXT: a file, a document a line; OUT: where runs go. 400 steps each: a quarter of an hour on a core. PYTHON is the Python to take.
set -euo pipefail
(($# == 3)) || { sed -n '2,4p' "$0" >&2; exit 1; }
run=$1 text=$2 out=$3
main=("${PYTHON:-python}" -m electra_jax.main)
[[ -d $out/hf ]] || "${main[@]}" --mode=export --workdir="$run" --output="$out/hf"
common=(--config=configs/mini.py --config.data.source="$text" --config.data.document_format=line --config.data.cache="$out/cache" --config.steps=400
  --config.optimizer.warmup_steps=40 --config.log_every=20 --config.eval_every=40 --config.save_every=400 --config.eval_rows=512)
"${main[@]}" "${common[@]}" --config.init="hf:$out/hf" --config.data.tokenizer=init --config.optimizer.learning_rate=1e-3 --workdir="$out/continued"
"${main[@]}" "${common[@]}" --config.data.tokenizer="$out/hf/discriminator" --workdir="$out/scratch"
"${PYTHON:-python}" benchmarks/continued.py "$out"
