#!/usr/bin/env bash
# What docs/results.md reports: a pretrained run and its from-scratch twin on seven tasks, and minimal pairs.
#   benchmarks/finetuning.sh RUN DATA OUT [TASK ...]
# RUN: a pretraining run; DATA: a folder with glue/, tagging/, squad/ and blimp.tar.xz; OUT: where runs go. Killed, the same command goes on.
# Few epochs on part of the data, for a CPU: an hour and a half on two cores. MODELS='pretrained scratch' says which; PYTHON is the Python to take. The table: python benchmarks/finetuning.py OUT
set -euo pipefail
(($# >= 3)) || { sed -n '2,6p' "$0" >&2; exit 1; }
run=$1 data=$2 out=$3
shift 3
(($#)) || set -- cola sst2 stsb pos uner wnut17 squad blimp
mkdir -p "$out"
for model in ${MODELS:-pretrained scratch}; do
  for task in "$@"; do
    trials=5
    case $task in
      cola) flags=(--config=configs/finetune/cola.py --config.data.source="$data/glue" --config.epochs=2.0) ;;
      sst2) flags=(--config=configs/finetune/sst2.py --config.data.source="$data/glue" --config.train_examples=10000 --config.epochs=1.0) ;;
      stsb) flags=(--config=configs/finetune/stsb.py --config.data.source="$data/glue" --config.train_examples=3000 --config.epochs=1.0) ;;
      pos) flags=(--config=configs/finetune/pos.py --config.data.source="$data/tagging/ud_ewt" --config.train_examples=6000
        --config.max_length=128 --config.epochs=1.0) ;;
      uner) flags=(--config=configs/finetune/ner.py --config.data.source="$data/tagging/uner_ewt" --config.data.ignore_labels='OTH,O'
        --config.train_examples=6000 --config.max_length=128 --config.epochs=1.0) ;;
      wnut17) flags=(--config=configs/finetune/ner.py --config.data.train="$data/tagging/wnut17/wnut17train.conll"
        --config.data.dev="$data/tagging/wnut17/emerging.dev.conll" --config.data.test="$data/tagging/wnut17/emerging.test.annotated"
        --config.max_length=128 --config.epochs=1.0) ;;
      squad) trials=1 flags=(--config=configs/finetune/squad1.py --config.data.train="$data/squad/train-v1.1.articlesplit.json"
        --config.data.dev="$data/squad/dev-v1.1.articlesplit.json" --config.max_length=256 --config.train_examples=2000
        --config.epochs=1.0) ;;
      blimp)
        [[ $model == pretrained ]] || continue
        "${PYTHON:-python}" -m electra_jax.main --mode=blimp --workdir="$run" --pairs="$data/blimp.tar.xz" --limit=50 2>&1 | tee "$out/blimp.log"
        continue
        ;;
      *) echo "there is no task '$task'" >&2 && exit 1 ;;
    esac
    # So few epochs want a higher rate than the published 3e-4. Without pretrained layers there is nothing to protect: the twin has it everywhere.
    init=(--config.init="$run" --config.optimizer.learning_rate=1e-3)
    if [[ $model == scratch ]]; then
      init=(--config.init=none --config.like="$run" --config.optimizer.learning_rate=1e-3 --config.optimizer.layer_decay=1.0)
    fi
    "${PYTHON:-python}" -m electra_jax.main --mode=finetune "${flags[@]}" "${init[@]}" --config.num_trials=$trials --config.eval_every=0.0 \
      --workdir="$out/$model/$task" 2>&1 | tee "$out/$model-$task.log"
  done
done
