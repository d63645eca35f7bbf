"""The same pieces of preparation as an Apache Beam pipeline: its local runner, Dataflow, Flink, Spark."""

import contextlib
import functools
import logging
import re
import shlex
from collections.abc import Callable, Iterable

from electra_jax import console
from electra_jax.config import UserError
from electra_jax.data import blocks, corpora, files


def check(flags: str, folder: str) -> None:
  """Raises UserError where Beam is not installed, or its workers could not reach the folder."""
  try:
    import apache_beam  # noqa: F401
  except ImportError:
    raise UserError('--beam needs Apache Beam, which is not installed; pip install apache-beam') from None
  if 'Dataflow' in flags and not files.is_remote(folder):
    raise UserError(f'workers of Dataflow cannot reach {folder!r}; give --output an address such as gs://bucket/folder')


def each_block(job: blocks.Job, groups: list[corpora.Group], stage: Callable, label: str, flags: str) -> None:
  """Calls `stage(job, block)` for each block of the groups; blocks that are finished are left as they are.

  Args:
    stage: blocks.sign or blocks.make_rows.
    flags: Beam's own, as on a command line: '--runner=DataflowRunner --project=...'.
  """
  import apache_beam as beam

  console.say(label, f'{len(groups):,} groups of files, by Apache Beam')
  with _pipeline(flags) as pipeline:
    (
      pipeline
      | 'groups' >> beam.Create(list(enumerate(groups)))
      | 'share out groups' >> beam.Reshuffle()
      | 'read' >> beam.FlatMap(functools.partial(_read, job))
      | 'share out blocks' >> beam.Reshuffle()
      | label >> beam.Map(functools.partial(_call, stage, job))
    )


def each(function: Callable, items: Iterable, flags: str) -> None:
  """Calls `function` for each item."""
  import apache_beam as beam

  with _pipeline(flags) as pipeline:
    pipeline | 'items' >> beam.Create(list(items)) | 'share out' >> beam.Reshuffle() | 'call' >> beam.Map(function)


@contextlib.contextmanager
def _pipeline(flags):
  """A pipeline that runs at the end of the block. A person's mistake in a worker is one sentence here too."""
  import apache_beam as beam
  from apache_beam.options.pipeline_options import PipelineOptions

  logger = logging.getLogger('apache_beam')
  level = logger.level
  logger.setLevel(logging.CRITICAL)  # it would print the worker's traceback beside the sentence
  try:
    with beam.Pipeline(options=PipelineOptions(shlex.split(flags))) as pipeline:
      yield pipeline
  except Exception as error:  # workers on other machines hand over the text of an error alone
    text = f'{type(error).__name__}: {error}'
    if not (mistake := re.search(r'\b(UserError|Unwritable): (.+?)(?: \[while running|\n|$)', text)):
      raise
    raise (files.Unwritable if mistake[1] == 'Unwritable' else UserError)(mistake[2]) from None
  finally:
    logger.setLevel(level)


def _read(job, numbered):
  return blocks.read_blocks(job, *numbered)


def _call(stage, job, block):
  stage(job, block)
