"""The jobs of a sweep as commands: for SLURM, for TPU queued resources, or for a shell.

The commands for SLURM and TPUs use the scripts of launch/.
"""

import dataclasses
import re
import shlex
from collections.abc import Sequence

from electra_jax import file_access
from electra_jax.config.declarations import has_control_characters
from electra_jax.console import say
from electra_jax.errors import UserError
from electra_jax.sweep.resolve import ResolvedSweep, SweepJob
from electra_jax.training import run_folder

# Flags that the command of a job does not repeat.
_NOT_REPEATED = ('mode', 'jobs', 'output', 'only', 'workdir')


@dataclasses.dataclass(frozen=True)
class JobScript:
  """A form of jobs.sh.

  Attributes:
    head: the first lines; {path} is the script's path.
    job: the lines of a job: {name}, {log} and the {command} after the program.
    tail: the last lines.
    needs_bucket: whether the machines of the jobs share no other folder.
  """

  head: str
  job: str
  tail: str
  needs_bucket: bool = False


FORMS = {
  'slurm': JobScript(
    """\
# Queues every job of the sweep, with one process and one GPU each. Options of sbatch follow:
#   bash {path} --partition=gpu --time=4:00:00
# Run it from the repository's root, on a file system that all nodes share. A job that is preempted
# is queued again and resumes.
set -euo pipefail
""",
    'sbatch --nodes=1 --ntasks-per-node=1 --gpus-per-node=1 --job-name={name} "$@" '
    'launch/slurm.sbatch {command}\n',
    '',
  ),
  'queued': JobScript(
    """\
# Runs every job of the sweep at the same time, each on its own TPU slice, with logs beside this
# file. It ends when all jobs have ended.
#   ZONE=us-central1-a bash {path} --project=mine
# Run it from the repository's root, on a machine that stays up. Options of launch/tpu.sh follow. A
# job is one process: choose slices of one host.
set -euo pipefail
: "${{ZONE:?set the zone of the slices, as in ZONE=us-central1-a bash jobs.sh}}"
topology=${{TOPOLOGY:-v5e-1}}
""",
    'launch/tpu.sh resume {name} --zone="$ZONE" --topology="$topology" --delete-when-done "$@" '
    '-- {command} > {log} 2>&1 &\n',
    'wait\n',
    needs_bucket=True,
  ),
  'shell': JobScript(
    """\
# Runs every job of the sweep, one after another: bash {path}
# Each line can also run by itself, on any machine that sees the folder of the sweep.
set -uo pipefail
failed=0
""",
    '"${{PYTHON:-python}}" -m electra_jax.main {command} || failed=1\n',
    'exit "$failed"\n',
  ),
}


def write_job_scripts(
  kind: str, output: str | None, sweep: ResolvedSweep, arguments: Sequence[str]
) -> None:
  """Writes jobs.sh, with a command for each job, and table.sh, to run when all have ended.

  Args:
    kind: of FORMS.
    output: the folder to write.
    sweep: the resolved sweep.
    arguments: the command line, which the commands repeat.

  Raises:
    UserError: the folder cannot be written, the machines of the jobs cannot share the workdir, or a
      name or path has control characters.
  """
  form = FORMS[kind]
  if form.needs_bucket and not file_access.is_remote(sweep.workdir):
    raise UserError(
      f'--workdir is {sweep.workdir}, a local folder, which the machines of --jobs={kind} do not '
      'share; expected a bucket (--workdir=gs://BUCKET/SWEEP).'
    )
  for what, text in (
    ('config.name', sweep.config.name),
    ('--workdir', str(sweep.workdir)),
    ('--output', output or ''),
    *(('the name of a run', job.name) for job in sweep.jobs),
  ):
    # Quotes protect a shell, but not a comment, a table of jobs or a terminal.
    if has_control_characters(text):
      raise UserError(f'{what} is {text!r}; expected no control characters.')
  folder = run_folder.folder(output or '')
  run_folder.check_writable(folder)
  path = folder / 'jobs.sh'
  shared = ['--mode=sweep', *_repeated(arguments), f'--workdir={sweep.workdir}']
  text = f'#!/usr/bin/env bash\n# {sweep.config.name}: {len(sweep.jobs)} jobs.\n'
  text += form.head.format(path=shlex.quote(str(path)))
  for job, name in zip(sweep.jobs, _cloud_names(sweep.config.name, sweep.jobs), strict=True):
    text += form.job.format(
      name=shlex.quote(name),
      log=shlex.quote(str(folder / f'{name}.log')),
      command=shlex.join([*shared, f'--only={job.name}']),
    )
  file_access.write_bytes(path, (text + form.tail).encode())
  table = (
    '#!/usr/bin/env bash\n# Run it when the jobs have ended: the table and the picture of all.\n'
    f'"${{PYTHON:-python}}" -m electra_jax.main {shlex.join([*shared, "--only=table"])}\n'
  )
  file_access.write_bytes(folder / 'table.sh', table.encode())
  say(
    'written',
    f'{path}: {len(sweep.jobs)} jobs; {folder / "table.sh"}: the table, when they have ended',
    always=True,
  )
  say('next', f'bash {path}')


def _repeated(arguments: Sequence[str]) -> list[str]:
  """The arguments without the flags of _NOT_REPEATED, as --flag=value or --flag value."""
  kept = []
  skip = False
  for word in arguments:
    name, equals, _ = word.lstrip('-').partition('=')
    if skip or word.startswith('-') and name in _NOT_REPEATED:
      skip = not skip and not equals
    else:
      kept.append(word)
  return kept


def _cloud_names(sweep: str, jobs: Sequence[SweepJob]) -> list[str]:
  """Distinct names of lowercase letters, digits and -, which cloud resources require."""
  found: list[str] = []
  for number, job in enumerate(jobs):
    name = re.sub(r'[^a-z0-9]+', '-', f'{sweep}-{job.file}'.lower()).strip('-')
    name = name if name[:1].isalpha() else f'sweep-{name}'
    name = name[-50:].lstrip('-0123456789') if len(name) > 50 else name
    found.append(f'{name}-{number}' if name in found or not name else name)
  return found
