"""Fine-tuned models of transformers with random weights, imported as runs."""

import json
import pathlib

import finetune_files
import hf_files

import electra_jax
from electra_jax.finetune.adopt import adopt
from electra_jax.finetune.config import default_config

SPECIAL = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
VOCABULARY = (
  SPECIAL
  + finetune_files.WORDS
  + [f'##{word[:2]}' for word in finetune_files.WORDS]
  + list('abdefgiklmnoprstu?.')
  + [f'##{letter}' for letter in 'abcdefghijklmnopqrstuvwxyz']
)


def folder_of(path, family, kind, tokenizer=True, **fields):
  """Writes a folder of transformers with a WordPiece vocabulary; returns the PyTorch model."""
  if 'id2label' in fields:
    fields['num_labels'] = len(fields['id2label'])
  made = hf_files.model(
    family, kind, **{'vocab_size': len(VOCABULARY), 'max_position_embeddings': 64} | fields
  )
  hf_files.saved(made, path)
  if tokenizer:
    (pathlib.Path(path) / 'vocab.txt').write_text('\n'.join(VOCABULARY) + '\n')
    (pathlib.Path(path) / 'tokenizer_config.json').write_text(
      json.dumps({'do_lower_case': True, 'tokenizer_class': 'ElectraTokenizer'})
    )
  return made


def config_of(folder, task, **fields):
  c = default_config()
  c.update(
    init=f'hf:{folder}',
    task=task,
    max_length=16,
    compilation_cache='',
    eval_batch_size=8,
    batch_size=8,
    epochs=1.0,
    num_trials=1,
    bucketed=False,
    eval_every=0.0,
    keep_trials='all',
  )
  c.model.update(scan_unroll=1, dropout=0.0, attention_dropout=0.0)  # compiles faster
  c.update_from_flattened_dict(fields)
  return c


def adopted(tmp_path, folder, task, **fields):
  adopt(config_of(folder, task, **fields), str(tmp_path / 'run'))
  return electra_jax.load(tmp_path / 'run')
