"""Runs the stages of a preparation as an Apache Beam pipeline.

Beam has runners for this machine, Dataflow, Flink and Spark.
"""

import contextlib
import difflib
import functools
import io
import logging
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from electra_jax import console, file_access
from electra_jax.data.corpus import corpora
from electra_jax.data.prepare import blocks
from electra_jax.errors import UserError, missing_package

_ERRORS = {
  'UserError': UserError,
  'Unwritable': file_access.Unwritable,
  'Unreachable': file_access.Unreachable,
}


def check_beam_flags(flags: str, folder: str) -> None:
  """Checks the value of --beam.

  Args:
    flags: of Beam, as on a command line.
    folder: of the prepared corpus.

  Raises:
    UserError: Beam is not installed, a flag is wrong, or workers could not reach the folder.
  """
  try:
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
    from apache_beam.runners.runner import create_runner
  except ImportError:
    raise missing_package('--beam', 'Apache Beam', 'beam') from None
  printed = io.StringIO()
  try:
    words = shlex.split(flags)
    with contextlib.redirect_stderr(printed), _quiet():
      options = PipelineOptions(words)
      known = options.get_all_options()
      runner = options.view_as(StandardOptions).runner or 'DirectRunner'
      create_runner(runner)
  except (SystemExit, ValueError, ImportError) as error:
    lines = printed.getvalue().strip().splitlines()[-1:] or [str(error)]
    raise UserError(f'--beam={flags!r} does not work: {lines[0]}') from None
  for word in words:
    name = word.partition('=')[0].lstrip('-').replace('-', '_')
    if word.startswith('-') and name not in known and name.removeprefix('no_') not in known:
      near = difflib.get_close_matches(name, known, n=1)
      remedy = f'did you mean --{near[0]}?' if near else 'leave it out'
      raise UserError(f'--beam has the flag {word!r}, which Beam does not know; {remedy}')
  if 'dataflow' in runner.lower() and not file_access.is_remote(folder):
    raise UserError(
      f'the output is {folder!r}, which workers of Dataflow cannot reach; set --output to an '
      'address such as gs://bucket/folder'
    )


def each_block(
  job: blocks.PreparationJob,
  groups: Sequence[corpora.Group],
  stage: blocks.Stage,
  label: str,
  flags: str,
) -> None:
  """Runs a stage for each block of the groups. Finished blocks are not changed.

  Args:
    job: the job.
    groups: all groups of the corpus.
    stage: `blocks.sign` or `blocks.make_rows`.
    label: of the console line.
    flags: of Beam, as on a command line: '--runner=DataflowRunner --project=...'.
  """
  import apache_beam as beam

  what = f'{len(groups):,} groups of files, by Apache Beam'
  console.say(label, what)
  with console.phase(label, what), _pipeline(flags) as pipeline:
    (
      pipeline
      | 'groups' >> beam.Create(list(enumerate(groups)))
      | 'distribute groups' >> beam.Reshuffle()
      | 'read' >> beam.FlatMap(functools.partial(_read, job))
      | 'distribute blocks' >> beam.Reshuffle()
      | label >> beam.Map(functools.partial(_run, stage, job))
    )


def each(function: Callable[[Any], object], items: Iterable[Any], flags: str) -> None:
  """Calls `function` for each item."""
  import apache_beam as beam

  with _pipeline(flags) as pipeline:
    (
      pipeline
      | 'items' >> beam.Create(list(items))
      | 'distribute' >> beam.Reshuffle()
      | 'call' >> beam.Map(function)
    )


@contextlib.contextmanager
def _pipeline(flags: str) -> Iterator[Any]:
  """A pipeline, which runs at the end of the block. A UserError of a worker is raised here too."""
  import apache_beam as beam
  from apache_beam.options.pipeline_options import PipelineOptions

  try:
    with _quiet(), beam.Pipeline(options=PipelineOptions(shlex.split(flags))) as pipeline:
      yield pipeline
  except Exception as error:  # other machines return only the text of an error
    text = f'{type(error).__name__}: {error}'
    found = re.search(rf'\b({"|".join(_ERRORS)}): (.+?)(?: \[while running|\n|$)', text)
    if not found:
      raise
    raise _ERRORS[found[1]](found[2]) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Without Beam's log, which prints tracebacks of errors that are raised as well."""
  logger = logging.getLogger('apache_beam')
  level = logger.level
  logger.setLevel(logging.CRITICAL)
  try:
    yield
  finally:
    logger.setLevel(level)


def _read(
  job: blocks.PreparationJob, numbered: tuple[int, corpora.Group]
) -> Iterator[blocks.Block]:
  return blocks.read_blocks(job, *numbered)


def _run(stage: blocks.Stage, job: blocks.PreparationJob, block: blocks.Block) -> None:
  blocks.run_stage(stage, job, block)
