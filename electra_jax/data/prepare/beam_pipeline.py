"""The same pieces of preparation as an Apache Beam pipeline: its local runner, Dataflow, Flink, Spark."""

import contextlib
import difflib
import functools
import io
import logging
import re
import shlex
from collections.abc import Callable, Iterable

from electra_jax import console, file_access
from electra_jax.data.corpus import corpora
from electra_jax.data.prepare import blocks
from electra_jax.errors import UserError


def check(flags: str, folder: str) -> None:
  """Raises UserError where Beam is not installed, its flags cannot be, or its workers could not reach the folder."""
  try:
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
    from apache_beam.runners import create_runner
  except ImportError:
    raise UserError(
      '--beam needs Apache Beam, which is not installed; pip install apache-beam'
    ) from None
  said = io.StringIO()
  try:
    words = shlex.split(flags)
    with contextlib.redirect_stderr(said), _quiet():
      options = PipelineOptions(words)
      known = options.get_all_options()
      runner = options.view_as(StandardOptions).runner or 'DirectRunner'
      create_runner(runner)
  except (SystemExit, ValueError, ImportError) as error:
    told = said.getvalue().strip().splitlines()[-1:] or [str(error)]
    raise UserError(f'--beam={flags!r} does not work: {told[0]}') from None
  for word in words:
    name = word.partition('=')[0].lstrip('-').replace('-', '_')
    if word.startswith('-') and name not in known and name.removeprefix('no_') not in known:
      near = difflib.get_close_matches(name, known, n=1)
      raise UserError(
        f'--beam has a flag {word!r} that Beam does not know'
        + (f'; did you mean --{near[0]}?' if near else '; leave it out')
      )
  if 'dataflow' in runner.lower() and not file_access.is_remote(folder):
    raise UserError(
      f'workers of Dataflow cannot reach {folder!r}; give --output an address such as gs://bucket/folder'
    )


def each_block(
  job: blocks.Job, groups: list[corpora.Group], stage: Callable, label: str, flags: str
) -> None:
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
    (
      pipeline
      | 'items' >> beam.Create(list(items))
      | 'share out' >> beam.Reshuffle()
      | 'call' >> beam.Map(function)
    )


@contextlib.contextmanager
def _pipeline(flags):
  """A pipeline that runs at the end of the block. A person's mistake in a worker is one sentence here too."""
  import apache_beam as beam
  from apache_beam.options.pipeline_options import PipelineOptions

  try:
    with _quiet(), beam.Pipeline(options=PipelineOptions(shlex.split(flags))) as pipeline:
      yield pipeline
  except Exception as error:  # workers on other machines hand over the text of an error alone
    text = f'{type(error).__name__}: {error}'
    if not (
      mistake := re.search(
        r'\b(UserError|Unwritable|Unreachable): (.+?)(?: \[while running|\n|$)', text
      )
    ):
      raise
    raise getattr(file_access, mistake[1])(mistake[2]) from None


@contextlib.contextmanager
def _quiet():
  """Without Beam's log, which would print tracebacks beside a sentence."""
  logger = logging.getLogger('apache_beam')
  level = logger.level
  logger.setLevel(logging.CRITICAL)
  try:
    yield
  finally:
    logger.setLevel(level)


def _read(job, numbered):
  return blocks.read_blocks(job, *numbered)


def _call(stage, job, block):
  stage(job, block)
