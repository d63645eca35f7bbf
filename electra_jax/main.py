"""The command line: python -m electra_jax.main --config=configs/base.py [--mode=train|evaluate|report] [--workdir=DIR]."""

import os
import sys

from absl import flags, logging
from ml_collections import config_flags

from electra_jax.config import UserError

MODES = ('train', 'evaluate', 'report')
FLAGS = flags.FLAGS
flags.DEFINE_enum('mode', 'train', MODES, 'train: pretrain, or go on; evaluate: a checkpoint on held-out rows; report: draw a run.')
flags.DEFINE_string('workdir', None, "The run's folder; without it runs/<config name>.")
flags.DEFINE_string('step', 'last', 'evaluate: the checkpoint to open, last, best (by the held-out loss) or a step.')
flags.DEFINE_integer('rows', None, 'evaluate: most held-out rows; without it all of them.')
_CONFIG = config_flags.DEFINE_config_file('config', None, 'The config file, with arguments: configs/base.py:seq=128,batch=64.', lock_config=True)


def dispatch() -> int:
  """Does what the flags say and returns the exit status. Raises UserError for a person's mistakes."""
  if FLAGS.mode == 'train':
    if _CONFIG.value is None:
      raise UserError('no --config was given; name one, as in --config=configs/tiny.py.')
    from electra_jax.pretrain.train import train
    workdir = FLAGS.workdir or os.path.join('runs', _CONFIG.value.name)
    return train(_CONFIG.value, workdir)
  if FLAGS.workdir is None and _CONFIG.value is None:
    raise UserError(f'--mode={FLAGS.mode} needs a run; name its folder with --workdir.')
  workdir = FLAGS.workdir or os.path.join('runs', _CONFIG.value.name)
  if FLAGS.mode == 'evaluate':
    import electra_jax
    from electra_jax.pretrain.evaluate import evaluate
    evaluate(electra_jax.load(workdir, FLAGS.step), rows=FLAGS.rows)
  else:
    from electra_jax.report import report
    report(workdir)
  return 0


def main(argv=None) -> int:
  """Parses the command line and dispatches; a person's mistake is one sentence on stderr and exit status 1."""
  argv = sys.argv if argv is None else argv
  logging.use_absl_handler()
  logging.set_verbosity(logging.ERROR)
  # Read by XLA when it starts: its notes on compiled programs it finds in the cache are not for a person.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  try:
    try:
      rest = FLAGS(argv)
    except UserError:
      raise
    except flags.Error as error:
      raise UserError(' '.join(str(error).split())) from None
    except (AttributeError, KeyError, TypeError, ValueError, OSError, ImportError, SyntaxError) as error:
      # A config file's own error, or a field that it has not.
      raise UserError(' '.join(str(error).strip('"\'').split())) from None
    if rest[1:]:
      raise UserError(f'{rest[1]!r} is not a flag; flags begin with --, as in --config=configs/tiny.py.')
    return dispatch()
  except UserError as error:
    print(f'electra_jax: {error}', file=sys.stderr)
    return 1


if __name__ == '__main__':
  sys.exit(main())
