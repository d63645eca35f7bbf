#!/usr/bin/env bash
# The curve and the table of docs/continued.md: a run exported for transformers, gone on from there on other text, beside one from scratch on the same
# text; and its discriminator alone with a generator from scratch, and with one cut out of it.
#   benchmarks/continued.sh RUN TEXT OUT
# RUN: a run of configs/mini.py; TEXT: a file, a document a line; OUT: where runs go. 400 and 220 steps each: three quarters of an hour on a core. PYTHON is the Python to take.
set -euo pipefail
(($# == 3)) || { sed -n '2,5p' "$0" >&2; exit 1; }
run=$1 text=$2 out=$3
main=("${PYTHON:-python}" -m electra_jax.main)
[[ -d $out/hf ]] || "${main[@]}" --mode=export --workdir="$run" --output="$out/hf"
common=(--config=configs/mini.py --config.data.source="$text" --config.data.document_format=line --config.data.cache="$out/cache" --config.steps=400
  --config.optimizer.warmup_steps=40 --config.log_every=20 --config.eval_every=40 --config.save_every=400 --config.eval_rows=512)
"${main[@]}" "${common[@]}" --config.init="hf:$out/hf" --config.data.tokenizer=init --config.optimizer.learning_rate=1e-3 --workdir="$out/continued"
"${main[@]}" "${common[@]}" --config.data.tokenizer="$out/hf/discriminator" --workdir="$out/scratch"
"${PYTHON:-python}" benchmarks/continued.py "$out"
for generator in narrowed scratch; do      # held-out lines of steps 0, 110 and 200
  "${main[@]}" "${common[@]}" --config.steps=220 --config.optimizer.warmup_steps=10 --config.eval_every=110 --config.save_every=220 \
    --config.init="hf:$out/hf/discriminator" --config.data.tokenizer=init --config.continued.generator=$generator --config.sharing=embeddings \
    --config.generator.hidden_fraction=0.5 --config.generator.alone_steps=200 --config.optimizer.learning_rate=1e-3 --workdir="$out/narrow-$generator"
done
