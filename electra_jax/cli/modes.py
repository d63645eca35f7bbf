"""The table of modes: what each one runs, and the flags that it takes.

The parser, the checks of `command_line.py` and `--help` are derived from it. A new mode is one
entry of MODES; a new flag is one entry of FLAGS and its name in the entries of its modes.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from electra_jax.config import (
  Config,
  FinetuningConfig,
  PretrainingConfig,
  ProbingConfig,
  SweepConfig,
)


@dataclasses.dataclass(frozen=True)
class Flag:
  """A flag of the command line.

  Attributes:
    name: without the dashes.
    help: one sentence.
    kind: type of its value: str, int, float, bool, or list for strings separated by commas.
    default: its value where the flag is not given.
    choices: all values, where they are a closed list.
    at_least: smallest value of a number.
    example: a value, for the message of a mode that requires the flag.
  """

  name: str
  help: str
  kind: type = str
  default: Any = None
  choices: tuple[str, ...] = ()
  at_least: int | None = None
  example: str = ''


@dataclasses.dataclass(frozen=True)
class Mode:
  """A mode of the command line.

  Attributes:
    name: as --mode takes it.
    help: one sentence.
    function: 'module:function', imported when the mode runs. It is called with the config and the
      workdir, where the mode has them, and a keyword for each of the mode's flags. It returns the
      exit status; any other result counts as status 0.
    config: class of the config that the mode takes; None where it uses the config of a run.
    config_required: whether --config must be given.
    check: 'module:function' that checks the config before anything slow is imported; '' for none.
    workdir: whether the mode has a run's folder.
    flags: names of the flags that apply, besides --mode, --config, --workdir and COMMON_FLAGS.
    required: those of them, and of --workdir, that must be given.
    together: pairs of flags of which both or none must be given.
    exclusive: pairs of flags of which at most one may be given.
    parameters: flag -> parameter of the function, where the names differ. 'arguments' stands for
      the whole command line.
    joins: whether the mode joins the other processes of a run on several machines.
    prints_only: whether the mode ends when its output is closed, as by `| head`. Others continue:
      what they write is worth more than what they print.
  """

  name: str
  help: str
  function: str
  config: type[Config] | None = None
  config_required: bool = True
  check: str = 'electra_jax.config:checked_config'
  workdir: bool = True
  flags: tuple[str, ...] = ()
  required: tuple[str, ...] = ()
  together: tuple[tuple[str, str], ...] = ()
  exclusive: tuple[tuple[str, str], ...] = ()
  parameters: Mapping[str, str] = dataclasses.field(default_factory=dict)
  joins: bool = False
  prints_only: bool = False

  @property
  def all_flags(self) -> tuple[str, ...]:
    """Names of the flags that apply, those of several processes included."""
    return (*self.flags, *(PROCESS_FLAGS if self.joins else ()))


#### Flags ####

# Flags of the modes that join other processes.
PROCESS_FLAGS = ('distributed', 'coordinator', 'processes', 'process')

FLAGS: dict[str, Flag] = {
  flag.name: flag
  for flag in (
    Flag(
      'workdir',
      "Folder of the run, local or gs://; default: runs/<the config's name>.",
      example='runs/small',
    ),
    Flag(
      'plugins',
      'Python files that register objectives, tasks, tokenizers, optimizers or corpus formats; '
      'they are executed before the config file.',
      list,
      default=[],
    ),
    Flag(
      'input_limits',
      'Factor for the limits on sizes of input (docs/reliability.md), for large files that you '
      'trust.',
      float,
      default=1.0,
    ),
    Flag('quiet', 'Print only warnings, errors and the result.', bool, default=False),
    Flag(
      'step',
      'Checkpoint to open: last, best (by config.best_by) or a step.',
      default='last',
    ),
    Flag(
      'rows',
      'Held-out rows, at most. evaluate, timeline: evenly spaced, default all; inspect: '
      'consecutive, default 4.',
      int,
      at_least=1,
    ),
    Flag('first', 'First held-out row to show.', int, default=0, at_least=0),
    Flag(
      'examples',
      'Held-out rows that the report shows with probabilities; 0 does not load the model.',
      int,
      default=3,
      at_least=0,
    ),
    Flag(
      'store',
      'Prepared corpus of the run, where it is not where it was during training.',
    ),
    Flag(
      'output',
      'Folder, file or gs:// address to write. prepare: default config.data.cache; plan: default '
      'runs/<name>; predict: a file, or with --split a folder, default WORKDIR/predictions; '
      'sweep: folder of the job scripts; evaluate, timeline, blimp, similarity and probe: folder '
      'of the results, default WORKDIR (probe: WORKDIR/probes/TASK).',
      example='exported',
    ),
    Flag(
      'format',
      'Format of the export: transformers (Hugging Face), or tensorflow (the original program).',
      default='transformers',
      choices=('transformers', 'tensorflow'),
    ),
    Flag(
      'license',
      "License for the model card, by the Hugging Face Hub's name, such as apache-2.0.",
    ),
    Flag('language', 'Codes of the languages for the model card, such as en,de.', list, default=[]),
    Flag(
      'datasets',
      'Training data for the model card, by names on the Hub, such as wikimedia/wikipedia.',
      list,
      default=[],
    ),
    Flag(
      'base_model',
      'Model that the run was initialized from, for the model card, by its name on the Hub.',
    ),
    Flag(
      'push',
      'Private repository of the Hugging Face Hub, org/name, to upload the export to: the '
      'discriminator of a pretrained run, or a fine-tuned run; org/name:public for a public one.',
      example='org/name',
    ),
    Flag(
      'topology',
      'TPU slice, such as v5e-16, v4-8, v5p-128 or v6e-64, or several, such as 2xv5e-256.',
      example='v5e-16',
    ),
    Flag(
      'take_over',
      'Take the folder to write from a process that uses it, which then stops. Not needed after a '
      'crash: a folder whose process is gone is free at once, or after a minute where the process '
      'was on another machine.',
      bool,
      default=False,
    ),
    Flag('price', 'US dollars per chip or device and hour, to estimate the cost.', float),
    Flag(
      'device',
      "Kind of the device, such as 'NVIDIA H100' or 'TPU v5e'; default: that of this machine.",
    ),
    Flag('device_count', 'Number of devices; default: all of this machine, or 1.', int, at_least=1),
    Flag('utilization', 'Share of the peak FLOP/s that durations are estimated with.', float),
    Flag('hours', 'Time that a run may take; default: 30 days.', float),
    Flag(
      'search',
      'Search for the largest batch that fits into memory; takes more compilations.',
      bool,
      default=True,
    ),
    Flag(
      'beam',
      "Options of an Apache Beam pipeline, such as '--runner=DataflowRunner ...'; '' runs it "
      'locally.',
    ),
    Flag(
      'distributed',
      'How the processes of a run find each other: cluster (Cloud TPU, GKE, SLURM, MPI), off, or '
      'auto: cluster where the environment names several processes.',
      default='auto',
      choices=('auto', 'cluster', 'off'),
    ),
    Flag('coordinator', 'HOST:PORT of the first process, where there is no cluster.'),
    Flag('processes', 'With --coordinator: number of processes.', int, at_least=1),
    Flag('process', 'With --coordinator: number of this process, from 0.', int, at_least=0),
    Flag(
      'input',
      "predict: file of texts, pairs, questions or sentences, '-' for standard input; it is scored "
      'where it has labels. evaluate: a corpus as config.data.source names it, or the folder of a '
      "prepared one; the run's own is then not needed. similarity: a table with the columns "
      'sentence1, sentence2 and score.',
      example='sts.tsv',
    ),
    Flag(
      'allow_loss',
      'Continue although the tokenizer loses 20% or more of the characters, as [UNK] or removed.',
      bool,
      default=False,
    ),
    Flag(
      'ensemble',
      'Trials whose predictions are averaged: all whose weights are kept, or a number of the best.',
      example='all',
    ),
    Flag(
      'report',
      'predict: HTML file to write about labeled data: metrics per class, errors, calibration.',
    ),
    Flag('task', 'Task, where the run was fine-tuned on several.'),
    Flag(
      'split',
      "Part of the run's own data, test or dev, in place of --input: metrics where it has labels, "
      "and files in the format of the task's leaderboard.",
    ),
    Flag(
      'pairs',
      'Minimal pairs: a folder, .tar.xz or .jsonl.',
      example='blimp',
    ),
    Flag('limit', 'Pairs of each paradigm, at most.', int, at_least=1),
    Flag(
      'jobs',
      'Write the commands of all jobs to --output instead of running them: for slurm, queued '
      '(TPU queued resources) or shell.',
      choices=('slurm', 'queued', 'shell'),
    ),
    Flag(
      'at_once',
      'With --jobs=queued: slices that are requested at the same time, at most; default 4.',
      int,
      at_least=1,
    ),
    Flag(
      'shared_files',
      'With --jobs=queued: the workers see local files of the sweep by the same paths, as on a '
      'shared disk. Otherwise files must be committed or at addresses.',
      bool,
      default=False,
    ),
    Flag('only', "Run one job, RUN:SEED, or only make the table of finished runs: 'table'."),
    Flag(
      'results',
      'Files with results of finished runs, used where config and data are the same.',
      list,
      default=[],
    ),
  )
}
# Flags whose value is a path or an address.
PATHS = ('workdir', 'store', 'output', 'input', 'pairs', 'report')
# Flags of every mode.
COMMON_FLAGS = ('plugins', 'input_limits', 'quiet')


#### Modes ####

MODES: dict[str, Mode] = {
  mode.name: mode
  for mode in (
    Mode(
      'train',
      'Pretrain, or resume pretraining.',
      'electra_jax.pretrain.train:train',
      config=PretrainingConfig,
      flags=('take_over',),
      joins=True,
    ),
    Mode(
      'prepare',
      'Make the tokenizer and the rows of a corpus.',
      'electra_jax.pretrain.run_start:prepare_only',
      config=PretrainingConfig,
      workdir=False,
      flags=('output', 'beam', 'take_over'),
    ),
    Mode(
      'evaluate',
      'Evaluate a checkpoint of a pretrained run on held-out rows, or on another corpus (--input).',
      'electra_jax.cli.opened_run:evaluate_run',
      flags=('step', 'rows', 'store', 'output', 'input'),
      exclusive=(('store', 'input'),),
      parameters={'input': 'source'},
      joins=True,
      prints_only=True,
    ),
    Mode(
      'inspect',
      'Show held-out rows, samples and predictions of a pretrained run as text.',
      'electra_jax.cli.opened_run:inspect_run',
      flags=('step', 'rows', 'first', 'store'),
      prints_only=True,
    ),
    Mode(
      'report',
      'Write a page about a run: checks, curves, metrics, examples or errors, data and settings.',
      'electra_jax.report:report_mode',
      flags=('examples', 'store'),
    ),
    Mode(
      'plan',
      'Compile a config for a TPU slice, or without --topology: shipped configs for a corpus and '
      'device.',
      'electra_jax.plan:plan_mode',
      config=PretrainingConfig,
      workdir=False,
      flags=(
        'topology',
        'output',
        'price',
        'search',
        'device',
        'device_count',
        'utilization',
        'hours',
      ),
      exclusive=tuple(
        ('topology', name) for name in ('device', 'device_count', 'utilization', 'hours')
      ),
      parameters={'device': 'name', 'device_count': 'count'},
    ),
    Mode(
      'finetune',
      'Fine-tune a pretrained run or other weights on tasks.',
      'electra_jax.finetune.train:run_finetuning',
      config=FinetuningConfig,
      flags=('take_over',),
      joins=True,
    ),
    Mode(
      'predict',
      'Predict with a fine-tuned run.',
      'electra_jax.finetuned_report:predict_mode',
      flags=('input', 'task', 'split', 'output', 'allow_loss', 'ensemble', 'report'),
      parameters={'input': 'source'},
    ),
    Mode(
      'probe',
      'Fit linear probes on the frozen states of each layer of an encoder.',
      'electra_jax.probe:probe',
      config=ProbingConfig,
      flags=('output',),
      required=('workdir',),
    ),
    Mode(
      'blimp',
      'Score minimal pairs of sentences with a pretrained run.',
      'electra_jax.cli.opened_run:score_minimal_pairs',
      flags=('step', 'pairs', 'limit', 'output'),
      required=('pairs',),
    ),
    Mode(
      'similarity',
      'Score sentence embeddings of a run on pairs with given similarities (STS).',
      'electra_jax.cli.opened_run:score_similarity',
      flags=('step', 'input', 'task', 'output', 'allow_loss'),
      required=('input',),
      parameters={'input': 'source'},
    ),
    Mode(
      'timeline',
      'Evaluate all checkpoints of a pretrained run; with a config, fine-tune from each of them.',
      'electra_jax.timeline:timeline',
      config=FinetuningConfig,
      config_required=False,
      check='',  # config.init is the run, which the mode sets itself
      flags=('rows', 'store', 'output'),
      required=('workdir',),
      joins=True,
    ),
    Mode(
      'import',
      'Make a run of a fine-tuned model of transformers.',
      'electra_jax.finetune.adopt:adopt',
      config=FinetuningConfig,
      flags=('take_over',),
    ),
    Mode(
      'export',
      'Export a run to transformers or to the original TensorFlow program.',
      'electra_jax.export:export',
      flags=(
        'output',
        'format',
        'step',
        'task',
        'take_over',
        'push',
        'license',
        'language',
        'datasets',
        'base_model',
      ),
      required=('output',),
    ),
    Mode(
      'verify',
      'Read all files of a run, a prepared corpus (--workdir=ITS FOLDER) or an export, and report '
      'damage.',
      'electra_jax.verify:verify',
      flags=('store',),
    ),
    Mode(
      'sweep',
      'Pretrain, evaluate and fine-tune many runs, and compare them in one table.',
      'electra_jax.sweep.runner:sweep',
      config=SweepConfig,
      check='electra_jax.sweep.resolve:jobs_of',
      flags=('jobs', 'output', 'at_once', 'shared_files', 'only', 'results', 'take_over'),
      together=(('jobs', 'output'),),
      exclusive=(('jobs', 'only'), ('jobs', 'take_over')),
      parameters={'arguments': 'arguments'},
    ),
  )
}
DEFAULT_MODE = 'train'

# How messages name a config of each class, and a file that makes one.
CONFIG_NAMES: dict[type[Config], str] = {
  PretrainingConfig: 'a pretraining config',
  FinetuningConfig: 'a fine-tuning config',
  ProbingConfig: 'a config of probes',
  SweepConfig: 'a sweep config',
}
CONFIG_EXAMPLES: dict[type[Config], str] = {
  PretrainingConfig: 'configs/tiny.py',
  FinetuningConfig: 'configs/finetune/cola.py',
  ProbingConfig: 'configs/probe/pos.py',
  SweepConfig: 'configs/sweeps/objectives.py',
}


def modes_with(flag: str) -> tuple[str, ...]:
  """Names of the modes that a flag applies to."""
  if flag in COMMON_FLAGS:
    return tuple(MODES)
  if flag == 'workdir':
    return tuple(name for name, mode in MODES.items() if mode.workdir)
  return tuple(name for name, mode in MODES.items() if flag in mode.all_flags)
