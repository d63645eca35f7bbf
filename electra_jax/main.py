"""The command line: python -m electra_jax.main [--mode=MODE] [--config=FILE] [--workdir=DIR].

  train (the default), prepare, plan       --config=configs/base.py: pretrain; make the rows alone; say what a TPU slice would do
  evaluate, inspect, report, timeline      --workdir=RUN: figures, rows, pictures of a pretrained run; of all its checkpoints
  finetune                                 --config=configs/finetune/cola.py --config.init=RUN: train a task, in trials
  predict                                  --workdir=RUN --input=FILE: what a fine-tuned run says
  import                                   --config=configs/finetune/cola.py --config.init=hf:FOLDER: a fine-tuned model of transformers as a run
  export                                   --workdir=RUN --output=FOLDER: for transformers, or --format=tensorflow for the original program
  blimp                                    --workdir=RUN --pairs=FOLDER: minimal pairs, by a pretrained run as it is
  sweep                                    --config=configs/sweeps/objectives.py: many runs, pretrained, evaluated and fine-tuned; or as jobs

An absl program whose config is an ml_collections file: fields of it are flags too, --config.optimizer.learning_rate=1e-3.
"""

import glob
import importlib.util
import os
import re
import sys
import traceback

from absl import flags, logging
from ml_collections import config_flags

from electra_jax import console
from electra_jax.config import (
  Config,
  FinetuningConfig,
  PretrainingConfig,
  SweepConfig,
  checked,
  kind_of,
  reference,
)
from electra_jax.errors import INTERRUPTED, PREEMPTED, Preempted, UserError

MODES = (
  'train',
  'prepare',
  'evaluate',
  'inspect',
  'report',
  'plan',
  'finetune',
  'predict',
  'blimp',
  'timeline',
  'import',
  'export',
  'sweep',
)
WITH_CONFIG = ('train', 'prepare', 'plan', 'finetune', 'import', 'sweep')
# Flags that only some modes take, beside those that say what: --config, --workdir.
BELONG = {
  'step': ('evaluate', 'inspect', 'blimp', 'export'),
  'format': ('export',),
  'rows': ('evaluate', 'inspect', 'timeline'),
  'store': ('evaluate', 'inspect', 'timeline'),
  'first': ('inspect',),
  'output': ('prepare', 'plan', 'predict', 'export', 'sweep'),
  'beam': ('prepare',),
  'topology': ('plan',),
  'price': ('plan',),
  **dict.fromkeys(('jobs', 'only', 'results'), ('sweep',)),
  'search': ('plan',),
  'input': ('predict',),
  'task': ('predict', 'export'),
  'split': ('predict',),
  'pairs': ('blimp',),
  'limit': ('blimp',),
  **dict.fromkeys(
    ('distributed', 'coordinator', 'processes', 'process'),
    ('train', 'evaluate', 'finetune', 'timeline'),
  ),
}


def parse(argv: list[str]) -> flags.FlagValues:
  """The command line's flags, in a set of their own. Raises UserError, in one sentence, for whatever is wrong with them."""
  values = flags.FlagValues()
  flags.DEFINE_enum(
    'mode',
    'train',
    MODES,
    'train: pretrain, or go on; prepare: text to a tokenizer and rows; evaluate: a checkpoint on '
    'held-out rows; inspect: show rows, samples and verdicts as text; report: draw a run; plan: what it would do on a TPU slice; finetune: train a task; '
    'predict: use it; blimp: minimal pairs; timeline: all checkpoints of a run; import: a model of transformers that was fine-tuned, as a run; '
    'export: a run for other programs; sweep: many runs, one table.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'workdir', None, "The run's folder; without it runs/<config name>.", flag_values=values
  )
  flags.DEFINE_string(
    'step',
    'last',
    'evaluate, inspect, blimp, export: the checkpoint to open: last, best (by the held-out loss) or a step.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'rows',
    None,
    'evaluate, timeline: most held-out rows, without it all; inspect: how many.',
    lower_bound=1,
    flag_values=values,
  )
  flags.DEFINE_integer(
    'first', 0, 'inspect: the first held-out row to show.', lower_bound=0, flag_values=values
  )
  flags.DEFINE_string(
    'store',
    None,
    'evaluate, inspect, timeline: the prepared corpus, where it is elsewhere than at training.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'output',
    None,
    'prepare, plan: the folder or gs:// address to keep it in; without it config.data.cache, or runs/<config name>; predict: the file to write, '
    "or with --split the folder; without it what is printed, or WORKDIR/predictions; export: the folder to write; sweep: of the jobs' commands.",
    flag_values=values,
  )
  flags.DEFINE_enum(
    'format',
    'transformers',
    ('transformers', 'tensorflow'),
    'export: for whom: transformers (Hugging Face), or the original TensorFlow program.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'topology',
    None,
    'plan: the TPU slice, v5e-16, v4-8, v5p-128, v6e-64, or several, 2xv5e-256.',
    flag_values=values,
  )
  flags.DEFINE_float(
    'price', None, 'plan: dollars a chip-hour, for what the run costs.', flag_values=values
  )
  flags.DEFINE_bool(
    'search',
    True,
    'plan: look for the largest batch that fits, which takes some more compilations.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'beam',
    None,
    "prepare: flags of an Apache Beam pipeline, such as '--runner=DataflowRunner ...'; '' for its local runner.",
    flag_values=values,
  )
  flags.DEFINE_enum(
    'distributed',
    'auto',
    ('auto', 'cluster', 'off'),
    'train, evaluate: join the other processes of the run: as the cluster says '
    '(Cloud TPU, GKE, SLURM, MPI); auto: where the environment names several.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'coordinator',
    None,
    'train, evaluate: HOST:PORT of the first process, in place of a cluster.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'processes',
    None,
    'with --coordinator: how many processes the run has.',
    lower_bound=1,
    flag_values=values,
  )
  flags.DEFINE_integer(
    'process',
    None,
    'with --coordinator: the number of this one, from 0.',
    lower_bound=0,
    flag_values=values,
  )
  flags.DEFINE_string(
    'input',
    None,
    "predict: the file of texts, pairs, questions or sentences; '-' reads them from standard input.",
    flag_values=values,
  )
  flags.DEFINE_string(
    'task',
    None,
    'predict, export: the task, where the run was fine-tuned on several.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'split',
    None,
    "predict: a part of the run's own data, test or dev, in place of --input: figures where it has labels, and files for the "
    "task's site.",
    flag_values=values,
  )
  flags.DEFINE_string(
    'pairs', None, 'blimp: the folder, .tar.xz or .jsonl of minimal pairs.', flag_values=values
  )
  flags.DEFINE_integer(
    'limit', None, 'blimp: most pairs of each paradigm.', lower_bound=1, flag_values=values
  )
  flags.DEFINE_enum(
    'jobs',
    None,
    ('slurm', 'queued', 'shell'),
    'sweep: write the commands of its jobs to --output, and run none.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'only',
    None,
    "sweep: one job, RUN:SEED, or 'table': the table of what is done.",
    flag_values=values,
  )
  flags.DEFINE_list(
    'results',
    [],
    'sweep: files of lines of finished runs, which count where config and data are the same.',
    flag_values=values,
  )
  flags.DEFINE_bool('help', False, 'Show this.', flag_values=values, short_name='h')
  config_flags.DEFINE_config_file(
    'config',
    None,
    'The config file, with arguments: configs/base.py:seq=128,batch=64.',
    flag_values=values,
    sys_argv=argv,
  )
  try:
    rest = values(argv)
    # A file that could not be read, or makes no config, raises here.
    if (config := values['config']).present and not hasattr(values.config, 'lock'):
      raise TypeError(f'get_config of {config.config_filename} returns no ConfigDict')
    if values.config:
      _ = values.config.name  # raises where the file sets no name
  except UserError:
    raise
  except Exception as error:
    wrong = explain(error)
    raise UserError(
      wrong
      + (' ' if wrong.endswith('?') else '; ')
      + '--help lists the flags and the fields of a config.'
    ) from None
  if rest[1:]:
    raise UserError(
      f'{rest[1]!r} is not a flag; flags begin with --, as in --config=configs/tiny.py.'
    )
  return values


PLAINER = {
  'invalid literal for int() with base 10: ': 'not an integer: ',
  'could not convert string to float: ': 'not a number: ',
  "('Non-boolean argument to boolean flag', ": 'neither true nor false: (',
  "module 'config_config'": 'the file',
}


def explain(error: Exception) -> str:
  """What was wrong in a config file or a flag: whatever a config file raises comes out of parsing, beside the flags' complaints."""
  text = str(error).replace('\\n', '\n').replace('\\', '').strip()
  lines = [
    frame.lineno
    for frame in traceback.extract_tb(error.__traceback__)
    if frame.name == 'get_config'
  ]
  lines += re.findall(
    r'line (\d+), in get_config', text
  )  # ml_collections prints some tracebacks into the message
  if field := re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text):
    return f'the config has no field {field[2]!r}; did you mean {field[1]!r}?'
  if (
    isinstance(error, (AttributeError, KeyError)) and re.fullmatch(r'\W*\w+\W*', text) and not lines
  ):
    return f'the config has no field {text.strip(chr(34) + chr(39))!r}'
  if isinstance(error, OSError):
    return 'the config file cannot be read: ' + re.split(r'Errno \d+\] |failure to load: ', text)[
      -1
    ].rstrip(']')
  text = ' '.join((text.splitlines() or [''])[-1 if 'Traceback' in text else 0 :])
  for technical, plain in PLAINER.items():
    text = text.replace(technical, plain)
  if isinstance(error, flags.Error) and not lines:
    return ' '.join(text.split()).rstrip('.')
  kind = '' if isinstance(error, flags.Error) else f'{type(error).__name__}: '
  return f'the config does not work ({f"line {lines[-1]}: " if lines else ""}{kind}{text})'


def dispatch(values: flags.FlagValues, arguments: list[str] = ()) -> int:
  """Does what the flags say and returns the exit status. Raises UserError for a person's mistakes. `arguments`: that the flags were given as."""
  if values.help:
    print(help_text(values))
    return 0
  if values.mode in WITH_CONFIG and values.config is None:
    raise UserError(
      'no --config was given; name one, as in --config=configs/'
      + (
        'finetune/cola.py.'
        if values.mode in ('finetune', 'import')
        else 'sweeps/objectives.py.'
        if values.mode == 'sweep'
        else 'tiny.py.'
      )
    )
  if values.workdir is None and values.config is None:
    raise UserError(f'--mode={values.mode} needs a run; name its folder with --workdir.')
  # What would be of no effect is a mistake.
  for name, modes in BELONG.items():
    if values[name].present and values.mode not in modes:
      raise UserError(f'--{name} belongs to --mode={" and --mode=".join(modes)}; leave it out.')
  if values.mode in ('prepare', 'plan') and values['workdir'].present:
    raise UserError(
      f'--mode={values.mode} makes no run; name the folder to keep what it makes in with --output, or leave --workdir out.'
    )
  if values.mode == 'plan' and not values.topology:
    raise UserError('--mode=plan needs a TPU slice; name one, as in --topology=v5e-16.')
  if values.mode not in (*WITH_CONFIG, 'timeline') and (
    fields := [name for name in values if name.startswith('config.')]
  ):
    raise UserError(f"--mode={values.mode} takes the run's own config; leave out --{fields[0]}.")
  if values.mode == 'blimp' and not values.pairs:
    raise UserError('--mode=blimp needs minimal pairs; name their folder or file with --pairs.')
  if values.mode == 'timeline' and not values.workdir:
    raise UserError('--mode=timeline needs the folder of a pretrained run; name it with --workdir.')
  if values.mode == 'export' and not values.output:
    raise UserError('--mode=export needs a folder to write; name it with --output.')
  if values.mode == 'sweep' and bool(values.jobs) != bool(values.output):
    raise UserError(
      '--jobs and --output belong together: for whom the commands are, slurm, queued or shell, and the folder to write them to.'
    )
  if values.mode == 'sweep' and values.jobs and values.only:
    raise UserError('--only is one job, and --jobs writes the commands of all; leave one out.')
  workdir = values.workdir or os.path.join('runs', values.config.name)
  check_config(values)
  if values.mode in BELONG['distributed']:
    from electra_jax.training import hosts

    hosts.join(values.distributed, values.coordinator, values.processes, values.process)
  if values.mode == 'sweep':
    from electra_jax.sweep.runner import sweep

    return sweep(
      values.config,
      workdir,
      only=values.only,
      known=tuple(values.results),
      jobs=values.jobs,
      output=values.output,
      arguments=tuple(arguments),
    )
  if values.mode == 'import':
    from electra_jax.finetune.adopt import adopt

    adopt(values.config, workdir)
    return 0
  if values.mode == 'finetune':
    from electra_jax.finetune.train import finetune

    return finetune(values.config, workdir)
  if values.mode == 'train':
    from electra_jax.pretrain.train import train

    return train(values.config, workdir)
  if values.mode == 'prepare':
    from electra_jax.pretrain.run_start import prepare_only

    prepare_only(values.config, output=values.output, beam=values.beam)
  elif values.mode == 'plan':
    from electra_jax.plan import plan

    plan(
      values.config, values.topology, output=values.output, price=values.price, search=values.search
    )
  elif values.mode == 'predict':
    from electra_jax.finetune.predict import predict

    predict(
      workdir, source=values.input, task=values.task, split=values.split, output=values.output
    )
  elif values.mode == 'export':
    from electra_jax.export import export

    export(workdir, values.output, format=values.format, step=values.step, task=values.task)
  elif values.mode == 'timeline':
    from electra_jax.timeline import timeline

    return timeline(values.workdir, config=values.config, rows=values.rows, store=values.store)
  elif values.mode in ('evaluate', 'inspect', 'blimp'):
    import electra_jax
    from electra_jax.finetune.finetuned import is_finetuned
    from electra_jax.training.devices import use_compilation_cache

    if is_finetuned(workdir):
      raise UserError(
        f'--mode={values.mode} is for pretrained runs and {workdir} is a fine-tuned one; --mode=predict --split=dev scores it.'
      )
    run = electra_jax.load(workdir, values.step, values.store)
    use_compilation_cache(run.config.compilation_cache)
    if values.mode == 'evaluate':
      from electra_jax.pretrain.evaluation import evaluate

      evaluate(run, rows=values.rows)
    elif values.mode == 'blimp':
      from electra_jax.pretrain.minimal_pairs import blimp

      blimp(run, values.pairs, limit=values.limit)
    else:
      from electra_jax.pretrain.inspect import inspect

      inspect(run, rows=values.rows or 4, first=values.first)
  else:
    from electra_jax.report import report

    report(workdir)
  return 0


KINDS = {
  PretrainingConfig: ('to pretrain with', 'configs/tiny.py'),
  FinetuningConfig: ('for --mode=finetune', 'configs/finetune/cola.py'),
  SweepConfig: ('for --mode=sweep', 'configs/sweeps/objectives.py'),
}


def kind_for(mode: str) -> type[Config] | None:
  """The kind of config that a mode takes; None for a mode that takes none."""
  if mode == 'sweep':
    return SweepConfig
  if mode in ('finetune', 'import', 'timeline'):
    return FinetuningConfig
  return PretrainingConfig if mode in WITH_CONFIG else None


def check_config(values: flags.FlagValues) -> None:
  """Checks the config of a mode that takes one, before anything slow is imported.

  Raises:
    UserError: where it is for another mode, or its fields cannot be or contradict each other.
  """
  if values.config is None or values.mode not in WITH_CONFIG:
    return
  kind, given = kind_for(values.mode), kind_of(values.config)
  if kind is not given:
    raise UserError(
      f'--mode={values.mode} takes a config such as {KINDS[kind][1]}, and this one is '
      f'{KINDS[given][0]}.'
    )
  if given is SweepConfig:
    from electra_jax.sweep.resolve import jobs_of

    jobs_of(values.config)
  else:
    checked(values.config)


def help_text(values: flags.FlagValues) -> str:
  """The flags, and the fields of the config that the mode takes."""
  kind = kind_for(values.mode)
  text = __doc__ + '\n' + values.get_help(include_special_flags=False)
  if kind is None:
    return text
  return f'{text}\n\nFields of a config {KINDS[kind][0]}, such as {KINDS[kind][1]}:\n\n' + (
    reference.help_text(kind)
  )


def main(argv: list[str] | None = None) -> int:
  """Parses the command line and dispatches; a person's mistake is one sentence on stderr and exit status 1."""
  logging.use_absl_handler()
  logging.set_verbosity(logging.ERROR)
  console.quiet_libraries()
  if (
    not tpu_here()
    and importlib.util.find_spec('libtpu')
    and not any(map(importlib.util.find_spec, GPU_PLUGINS))
  ):
    os.environ.setdefault(
      'JAX_PLATFORMS', 'cpu'
    )  # libtpu is here for --mode=plan; it would look for a TPU, and complain at length
  try:
    argv = sys.argv if argv is None else argv
    status = dispatch(parse(argv), argv[1:])
    sys.stdout.flush()
  except UserError as error:
    status = complain(str(error), 1)
  except BrokenPipeError:  # who read what is printed has seen enough: | head
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    status = 1
  except KeyboardInterrupt:
    status = complain(
      'interrupted; the same command goes on from what was saved, if anything was.', INTERRUPTED
    )
  except Preempted as error:
    return leave(complain(str(error), PREEMPTED), agreed=False)
  except Exception:  # what nobody expected; the other processes are not to wait for this one
    if hosts := sys.modules.get('electra_jax.training.hosts'):
      hosts.give_way()
    traceback.print_exc()
    status = 1
  return leave(status, agreed=status in (0, PREEMPTED))


GPU_PLUGINS = ('jax_cuda12_plugin', 'jax_cuda13_plugin', 'jax_rocm7_plugin', 'jax_rocm60_plugin')


def tpu_here() -> bool:
  """Whether this machine has TPU chips, as Cloud TPU VMs show them."""
  return bool(glob.glob('/dev/accel*') or glob.glob('/dev/vfio/[0-9]*'))


def complain(sentence: str, status: int) -> int:
  hosts = sys.modules.get(
    'electra_jax.training.hosts'
  )  # not before it was needed: it takes JAX, which takes a second
  print(f'electra_jax: {hosts.name() if hosts else ""}{sentence}', file=sys.stderr)
  return status


def leave(status: int, agreed: bool) -> int:
  """Says goodbye to the run's other processes, if there are any; `agreed`: they end now as well."""
  hosts = sys.modules.get('electra_jax.training.hosts')
  if hosts and hosts.leave(agreed) and not agreed:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(
      status
    )  # JAX's exit handler would wait for processes that are gone, or are about to be
  return status


if __name__ == '__main__':
  sys.exit(main())
