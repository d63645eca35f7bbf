"""The cells that benchmarks/compare.py compares: configs over all fields that change programs."""

import dataclasses
from typing import Any

OBJECTIVES = ('electra', 'mlm', 'replace_mlm', 'all_tokens_mlm', 'electra_15', 'electric')
FAMILIES = ('electra', 'modern')
SHARINGS = ('embeddings', 'none', 'all', 'disentangled')
HEADS = ('classification', 'regression', 'tagging', 'span')
# Version 0.1.0 does not have them, so that they cannot be compared with it.
NEWER_HEADS = ('choice', 'multilabel')
STEPS = 20
Fields = dict[str, Any]
NO_FIELDS: Fields = {}
FAMILY_FIELDS: dict[str, Fields] = {
  'electra': {'model.family': 'electra'},
  'modern': {'model.family': 'modern', 'model.layer_norm_eps': 1e-5},
}

# Runs that other cells start from; they take their steps in every comparison that has such cells.
PRETRAINED = {family: f'pretrained-{family}' for family in FAMILIES}


@dataclasses.dataclass(frozen=True)
class Cell:
  """One config that is compared.

  Attributes:
    name: unique; also the name of its folder.
    fields: config field -> value. In strings, `{runs}` is the folder of runs, and `{data}` that of
      labeled data.
    finetune: whether the config is one for fine-tuning.
    devices: CPU devices of the process.
    programs: numbers of different training and evaluation programs.
    needs: names of cells whose runs must exist.
  """

  name: str
  fields: Fields
  finetune: bool = False
  devices: int = 1
  programs: tuple[int, int] = (1, 1)
  needs: tuple[str, ...] = ()


PRETRAINING_FIELDS: Fields = {
  'data.vocab_size': 300,
  'data.reader': 'numpy',
  'sequence_length': 32,
  'batch_size': 8,
  'steps': STEPS,
  'model.hidden_size': 32,
  'model.embedding_size': 16,
  'model.num_layers': 2,
  'model.num_heads': 2,
  'model.intermediate_size': 64,
  'model.max_positions': 64,
  'model.vocab_multiple': 8,
  'model.scan_unroll': 1,
  'model.global_every': 2,
  'model.local_window': 8,
  'generator.hidden_fraction': 0.5,
  'optimizer.learning_rate': 1e-3,
  'optimizer.warmup_steps': 4,
  'micro_batches': 1,
  'log_every': 10,
  'eval_every': 10,
  'eval_rows': 16,
  'eval_batch_size': 8,
  'save_every': STEPS,
  'keep': 1,
  'compilation_cache': '',
}
FINETUNING_FIELDS: Fields = {
  'batch_size': 8,
  'eval_batch_size': 8,
  'max_length': 32,
  'epochs': 2.0,
  'bucketed': False,
  'log_every': 10,
  'save_every': 1_000,
  'keep_trials': 'all',
  'compilation_cache': '',
  'optimizer.learning_rate': 3e-3,
}


def pretraining(
  name: str,
  family: str = 'electra',
  *,
  fields: Fields = NO_FIELDS,
  devices: int = 1,
  programs: tuple[int, int] = (1, 1),
  needs: tuple[str, ...] = (),
) -> Cell:
  """A cell of pretraining; `fields` go on top of PRETRAINING_FIELDS."""
  fields = PRETRAINING_FIELDS | FAMILY_FIELDS[family] | fields
  return Cell(name, fields, devices=devices, programs=programs, needs=needs)


def finetuning(
  name: str,
  task: str,
  family: str = 'electra',
  *,
  fields: Fields = NO_FIELDS,
  devices: int = 1,
) -> Cell:
  """A cell of fine-tuning on the labeled data of a task, from the pretrained run of a family."""
  run = PRETRAINED[family]
  basis = FINETUNING_FIELDS | {
    'task': task,
    'init': f'{{runs}}/{run}',
    'data.train': f'{{data}}/{task}/train.jsonl',
    'data.dev': f'{{data}}/{task}/dev.jsonl',
  }
  if task == 'span':
    basis |= {'data.pair': 'pair', 'data.max_question': 8, 'data.stride': 8}
  return Cell(name, basis | fields, finetune=True, devices=devices, needs=(run,))


def objective_fields(objective: str, sharing: str) -> Fields:
  """The fields of an objective and a sharing scheme."""
  fields: Fields = {'objective.name': objective, 'sharing': sharing}
  return fields | ({'generator.hidden_fraction': 1.0} if sharing == 'all' else {})


def objective_cells() -> list[Cell]:
  """Every objective in every family with every sharing scheme that it has."""
  cells = []
  for family in FAMILIES:
    for objective in OBJECTIVES:
      for sharing in SHARINGS:
        # mlm has one tower, whatever is shared; electric's generator has two towers of its own.
        if objective == 'mlm' and sharing != 'embeddings':
          continue
        if objective == 'electric' and sharing == 'all':
          continue
        fields = objective_fields(objective, sharing)
        cells.append(pretraining(f'{objective}-{family}-{sharing}', family, fields=fields))
  return cells


def optimizer_cells() -> list[Cell]:
  """Optimizers and the forms of their schedules."""
  lamb = {'optimizer.name': 'lamb'}
  corrected = {'optimizer.bias_correction': True}
  generator_rate = {'optimizer.generator_learning_rate': 2e-3}
  variants: dict[str, Fields] = {
    'adamw-bias_correction': corrected,
    'lamb': lamb,
    'lamb-bias_correction': lamb | corrected,
    'generator_rate-embeddings': generator_rate,
    'generator_rate-none': generator_rate | {'sharing': 'none'},
    'generator_rate-disentangled': generator_rate | {'sharing': 'disentangled'},
    'generator_rate-lamb': generator_rate | lamb,
    'no_clip': {'optimizer.clip': 0.0},
    'no_weight_decay': {'optimizer.weight_decay': 0.0},
    'no_warmup': {'optimizer.warmup_steps': 0},
    'warmup_fraction': {'optimizer.warmup_fraction': 0.3},
    'decay_power': {'optimizer.decay_power': 0.5},
    'decay_after_warmup': {'optimizer.decay_after_warmup': True},
    'decay_power-after_warmup': {
      'optimizer.decay_power': 2.0,
      'optimizer.decay_after_warmup': True,
    },
    'betas': {'optimizer.b1': 0.8, 'optimizer.b2': 0.98, 'optimizer.eps': 1e-8},
  }
  return [pretraining(f'optimizer-{name}', fields=fields) for name, fields in variants.items()]


def objective_setting_cells() -> list[Cell]:
  """Masking, sampling, weights and their schedules."""
  temperature = {'objective.schedules.temperature': ('linear', 1.5, 0.5)}
  weight = {'objective.schedules.discriminator_weight': ('exponential', 10.0, 50.0, 0.3)}
  rate = {'objective.schedules.mask_rate': ('points', (0, 0.1), (8, 0.3), (16, 0.2))}
  variants: dict[str, Fields] = {
    'masking-words': {'objective.masking': 'words'},
    'masking-spans': {'objective.masking': 'spans'},
    'masking-spans-short': {
      'objective.masking': 'spans',
      'objective.span_p': 0.5,
      'objective.span_max': 3,
    },
    'masking-spans-mlm': {'objective.masking': 'spans', 'objective.name': 'mlm'},
    'masking-words-wordpiece': {'objective.masking': 'words', 'data.tokenizer': 'wordpiece'},
    'segment_pair': {'data.row_format': 'segment_pair'},
    'google': {'objective.google': True},
    'google-electra_15': {'objective.google': True, 'objective.name': 'electra_15'},
    'mask_rate': {'objective.mask_rate': 0.4},
    'mask_share': {'objective.mask_share': 1.0},
    'temperature': {'objective.temperature': 0.5},
    'temperature-zero': {'objective.temperature': 0.0},
    'disallow_correct': {'objective.disallow_correct': True},
    'weights': {'objective.generator_weight': 2.0, 'objective.discriminator_weight': 20.0},
    'prediction_weight': {
      'objective.name': 'replace_mlm',
      'objective.prediction_weight': 0.5,
    },
    'schedule-temperature': temperature,
    'schedule-mask_rate': rate,
    'schedule-discriminator_weight': weight,
    'schedule-all': temperature | weight | rate,
    'schedule-mask_rate-mlm': rate | {'objective.name': 'mlm'},
  }
  return [pretraining(f'objective-{name}', fields=fields) for name, fields in variants.items()]


def phase_cells() -> list[Cell]:
  """Runs of several phases; each phase has its own programs."""
  short = {'steps': 10, 'sequence_length': 16, 'batch_size': 16}
  long = {'steps': 10, 'sequence_length': 32, 'batch_size': 8}
  rates = {'optimizer.learning_rate': 1e-3, 'optimizer.warmup_steps': 2}
  lower = {'optimizer.learning_rate': 5e-4, 'optimizer.warmup_steps': 3}
  phases = {'phases': (short, long), 'sequence_length': 16, 'batch_size': 16}
  rated = {'phases': (short | rates, long | lower), 'sequence_length': 16, 'batch_size': 16}
  rated['optimizer.warmup_steps'] = 2
  alone = {'generator.alone_steps': 10}
  separate = {'optimizer.generator_learning_rate': 2e-3, 'sharing': 'none'}
  return [
    pretraining('phases', fields=phases, programs=(2, 2)),
    pretraining('phases-rates', fields=rated, programs=(2, 2)),
    pretraining('phases-rates-lamb', fields=rated | {'optimizer.name': 'lamb'}, programs=(2, 2)),
    pretraining('phases-generator_rate', fields=rated | separate, programs=(2, 2)),
    pretraining('alone_steps', fields=alone, programs=(2, 1)),
    pretraining('alone_steps-generator_rate', fields=alone | separate, programs=(2, 1)),
  ]


def generator_cells() -> list[Cell]:
  """Switches of the generator, and runs that start from the weights of another."""
  run, electra = '{runs}/' + PRETRAINED['electra'], (PRETRAINED['electra'],)
  modern = '{runs}/' + PRETRAINED['modern']
  begun = {'generator.init': run, 'sharing': 'none', 'data.tokenizer': 'init'}
  continued = {'init': run, 'sharing': 'none', 'data.tokenizer': 'init'}
  variants: dict[str, Fields] = {
    'init': begun,
    'frozen': begun | {'generator.frozen': True},
    'frozen-disentangled': begun | {'generator.frozen': True, 'sharing': 'disentangled'},
    'continued': continued,
    'continued-kept': continued | {'continued.optimizer': 'kept'},
    'continued-scratch': continued | {'continued.generator': 'scratch'},
    'continued-narrowed': continued | {'continued.generator': 'narrowed'},
    'continued-frozen': continued | {'generator.frozen': True},
  }
  return [
    pretraining('generator-uniform', fields={'generator.uniform': True}),
    pretraining('generator-layers', fields={'generator.layers_fraction': 0.5}),
    pretraining('generator-embedding', fields={'generator.embedding_size': 8, 'sharing': 'none'}),
    *(
      pretraining(f'generator-{name}', fields=fields, needs=electra)
      for name, fields in variants.items()
    ),
    pretraining(
      'generator-continued-modern',
      'modern',
      fields={'init': modern, 'sharing': 'none', 'data.tokenizer': 'init'},
      needs=(PRETRAINED['modern'],),
    ),
  ]


def program_cells() -> list[Cell]:
  """Fields of the step and of the model that change the program but not what is learned."""
  variants: dict[str, Fields] = {
    'micro_batches': {'micro_batches': 4},
    'micro_batches-spans': {'micro_batches': 2, 'objective.masking': 'spans'},
    'remat-dots': {'model.remat': 'dots'},
    'remat-full': {'model.remat': 'full'},
    'unrolled': {'model.scan_unroll': 0},
    'bfloat16': {'dtype': 'bfloat16'},
    'skip_nonfinite': {'skip_nonfinite': True},
    'threefry': {'model.dropout_generator': 'threefry'},
    'no_dropout': {'model.dropout': 0.0, 'model.attention_dropout': 0.0},
    'embedding_size': {'model.embedding_size': 32},
    'types': {'model.type_vocab_size': 1},
  }
  cells = [pretraining(f'program-{name}', fields=fields) for name, fields in variants.items()]
  modern: dict[str, Fields] = {
    'global': {'model.global_every': 1},
    'unrolled': {'model.scan_unroll': 0},
    'bfloat16': {'dtype': 'bfloat16'},
    'remat': {'model.remat': 'full'},
  }
  for name, fields in modern.items():
    cells.append(pretraining(f'program-modern-{name}', 'modern', fields=fields))
  return cells


def mesh_cells() -> list[Cell]:
  """Meshes of 8 devices, with small tensors split too."""
  split = {'sharding.smallest': 1}
  fsdp = split | {'mesh.data': 1, 'mesh.fsdp': 8}
  tensor = split | {'mesh.data': 4, 'mesh.tensor': 2, 'generator.num_heads': 2}
  mixed = split | {'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2, 'generator.num_heads': 2}
  variants: dict[str, Fields] = {
    'data': split,
    'data-whole_optimizer': split | {'sharding.optimizer': ''},
    'fsdp': fsdp,
    'tensor': tensor,
    'mixed': mixed,
    'slices': split | {'mesh.slices': 2},
    'mixed-mlm': mixed | {'objective.name': 'mlm'},
    'mixed-all_tokens_mlm': mixed | {'objective.name': 'all_tokens_mlm'},
    'mixed-electra_15': mixed | {'objective.name': 'electra_15'},
    'mixed-disentangled': mixed | {'sharing': 'disentangled'},
    'mixed-lamb': mixed | {'optimizer.name': 'lamb'},
    'mixed-micro_batches': mixed | {'batch_size': 16, 'micro_batches': 2},
  }
  cells = [pretraining(f'mesh-{n}', fields=fields, devices=8) for n, fields in variants.items()]
  cells.append(pretraining('mesh-mixed-modern', 'modern', fields=mixed, devices=8))
  for task in ('classification', 'span'):
    fields = split | {'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2}
    cells.append(finetuning(f'mesh-finetune-{task}', task, fields=fields, devices=8))
  return cells


def finetuning_cells() -> list[Cell]:
  """Every task head in both styles and families, frozen or not, and other switches."""
  cells = []
  for family in FAMILIES:
    for task in HEADS:
      for style in ('published', 'transformers'):
        name = f'finetune-{task}-{family}-{style}'
        cells.append(finetuning(name, task, family, fields={'head.style': style}))
      name = f'finetune-{task}-{family}-frozen'
      cells.append(finetuning(name, task, family, fields={'frozen': True}))
  mean, transformers = {'head.pooling': 'mean'}, {'head.style': 'transformers'}
  variants: dict[str, Fields] = {
    'pair': {'data.pair': 'pair'},
    'pooling': mean,
    'pooling-frozen': mean | {'frozen': True},
    'fresh': {'init': 'none', 'like': '{runs}/' + PRETRAINED['electra']},
    'bucketed': {'bucketed': True},
    'layer_decay': {'optimizer.layer_decay': 0.5, 'optimizer.published_depths': True},
    'bias_correction': {'optimizer.bias_correction': True},
    'micro_batches': {'micro_batches': 2},
    'remat': {'model.remat': 'full'},
    'bfloat16': {'dtype': 'bfloat16'},
    'skip_nonfinite': {'skip_nonfinite': True},
    'dropout': {'head.dropout': 0.3, 'model.dropout': 0.0},
    'trials': {'num_trials': 2, 'select': 'best', 'patience': 1},
  }
  for name, fields in variants.items():
    cells.append(finetuning(f'finetune-{name}', 'classification', fields=fields))
  return [
    *cells,
    finetuning('finetune-pooling-regression', 'regression', fields=mean),
    finetuning('finetune-pooling-modern', 'classification', 'modern', fields=mean | transformers),
    finetuning('finetune-impossible', 'span', fields={'head.impossible_weight': 0.0}),
    finetuning('finetune-beam', 'span', fields={'head.beam': 3}),
  ]


def cells() -> list[Cell]:
  """The whole matrix."""
  pretrained = [
    pretraining(name, family, fields={'sharing': 'none'}) for family, name in PRETRAINED.items()
  ]
  found = [
    *pretrained,
    *objective_cells(),
    *optimizer_cells(),
    *objective_setting_cells(),
    *phase_cells(),
    *generator_cells(),
    *program_cells(),
    *mesh_cells(),
    *finetuning_cells(),
  ]
  names = [cell.name for cell in found]
  if len(set(names)) < len(names):
    raise ValueError('two cells have the same name.')
  return found
