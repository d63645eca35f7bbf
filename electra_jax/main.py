"""The command line: python -m electra_jax.main --config=configs/base.py [--mode=train|evaluate|report] [--workdir=DIR].

An absl program whose config is an ml_collections file: fields of it are flags too, --config.optimizer.learning_rate=1e-3.
"""

import os
import re
import sys

from absl import flags, logging
from ml_collections import config_flags

from electra_jax.config import UserError

MODES = ('train', 'evaluate', 'report')
INTERRUPTED = 130     # exit status of a program that Ctrl-C ended


def parse(argv: list[str]) -> flags.FlagValues:
  """The command line's flags, in a set of their own. Raises UserError, in one sentence, for whatever is wrong with them."""
  values = flags.FlagValues()
  flags.DEFINE_enum('mode', 'train', MODES, 'train: pretrain, or go on; evaluate: a checkpoint on held-out rows; report: draw a run.',
                    flag_values=values)
  flags.DEFINE_string('workdir', None, "The run's folder; without it runs/<config name>.", flag_values=values)
  flags.DEFINE_string('step', 'last', 'evaluate: the checkpoint to open: last, best (by the held-out loss) or a step.', flag_values=values)
  flags.DEFINE_integer('rows', None, 'evaluate: most held-out rows; without it all of them.', lower_bound=1, flag_values=values)
  flags.DEFINE_bool('help', False, 'Show this.', flag_values=values, short_name='h')
  config_flags.DEFINE_config_file('config', None, 'The config file, with arguments: configs/base.py:seq=128,batch=64.',
                                  flag_values=values, sys_argv=argv)
  try:
    rest = values(argv)
    values.config and values.config.name       # a file that could not be read raises here
  except UserError:
    raise
  except Exception as error:
    # Whatever a config file raises comes out here, beside the flags' own complaints.
    message = ' '.join(str(error).replace('\\n', ' ').replace('\\', '').split())
    unknown, near = re.search(r"'(\w+)'", message), re.search(r'Did you mean "(\w+)"', message)
    if isinstance(error, AttributeError) and unknown:
      message = f'the config has no field {unknown[1]!r}' + (f', did you mean {near[1]!r}?' if near else '')
    elif isinstance(error, OSError) and ']: ' in message:
      message = f'the config file {message.partition("]: ")[2].partition(" [")[0]} cannot be read'
    elif not isinstance(error, flags.Error):
      message = f'the config does not work ({type(error).__name__}: {message})'
    raise UserError(message.rstrip('.') + '; --help lists the flags, electra_jax/config.py the fields of a config.') from None
  if rest[1:]:
    raise UserError(f'{rest[1]!r} is not a flag; flags begin with --, as in --config=configs/tiny.py.')
  return values


def dispatch(values: flags.FlagValues) -> int:
  """Does what the flags say and returns the exit status. Raises UserError for a person's mistakes."""
  if values.help:
    print(__doc__ + '\n' + values.get_help(include_special_flags=False))
    return 0
  if values.mode == 'train' and values.config is None:
    raise UserError('no --config was given; name one, as in --config=configs/tiny.py.')
  if values.workdir is None and values.config is None:
    raise UserError(f'--mode={values.mode} needs a run; name its folder with --workdir.')
  workdir = values.workdir or os.path.join('runs', values.config.name)
  if values.mode == 'train':
    from electra_jax.pretrain.train import train
    return train(values.config, workdir)
  if values.mode == 'evaluate':
    import electra_jax
    from electra_jax.pretrain.evaluate import evaluate
    evaluate(electra_jax.load(workdir, values.step), rows=values.rows)
  else:
    from electra_jax.report import report
    report(workdir)
  return 0


def main(argv: list[str] | None = None) -> int:
  """Parses the command line and dispatches; a person's mistake is one sentence on stderr and exit status 1."""
  logging.use_absl_handler()
  logging.set_verbosity(logging.ERROR)
  # Read by XLA when it starts: its notes on compiled programs it finds in the cache are not for a person.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  try:
    return dispatch(parse(sys.argv if argv is None else argv))
  except UserError as error:
    print(f'electra_jax: {error}', file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print('electra_jax: interrupted; the same command goes on from the last checkpoint, if there is one.', file=sys.stderr)
    return INTERRUPTED


if __name__ == '__main__':
  sys.exit(main())
