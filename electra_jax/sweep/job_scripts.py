"""The jobs of a sweep as commands: for SLURM, for TPU queued resources, or for a shell.

The commands for SLURM and TPUs use the scripts of launch/.
"""

import dataclasses
import re
import shlex
from collections.abc import Sequence
from typing import TypedDict

from electra_jax import file_access
from electra_jax.config.declarations import has_control_characters
from electra_jax.console import say
from electra_jax.errors import UserError
from electra_jax.sweep.resolve import ResolvedSweep, SweepJob
from electra_jax.sweep.worker_files import first_missing_file
from electra_jax.training import run_folder

# Flags that the command of a job does not repeat; those of _SWITCHES have no value.
_NOT_REPEATED = ('mode', 'jobs', 'output', 'only', 'workdir', 'at_once')
_SWITCHES = ('shared_files', 'noshared_files')
# Jobs that run at the same time where --at_once is not given.
AT_ONCE = 4


class ScriptOptions(TypedDict, total=False):
  """How to write the jobs of a sweep as commands.

  Attributes:
    jobs: 'slurm', 'queued' or 'shell'.
    output: the folder of the commands.
    at_once: jobs that run at the same time, at most, where the form has a limit; None: AT_ONCE.
    shared_files: whether the machines of the jobs see the local files of this one.
    arguments: the command line, which the commands repeat.
  """

  jobs: str | None
  output: str | None
  at_once: int | None
  shared_files: bool
  arguments: Sequence[str]


@dataclasses.dataclass(frozen=True)
class JobScript:
  """A form of jobs.sh.

  Attributes:
    head: the first lines; {path} is the script's path, {at_once} the limit of --at_once.
    job: the lines of a job: {name}, {log} and the {command} after the program.
    tail: the last lines.
    copies_tree: whether the machines of the jobs have a copy of the committed tree, and share no
      folder with this machine.
    has_limit: whether --at_once applies.
  """

  head: str
  job: str
  tail: str
  copies_tree: bool = False
  has_limit: bool = False


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
# Runs every job of the sweep, each on its own TPU slice, {at_once} of them at the same time, with
# logs beside this file. It ends when all jobs have ended, with status 1 where one failed.
#   ZONE=us-central1-a bash {path} --project=mine
# Run it from the repository's root, on a machine that stays up. Options of launch/tpu.sh follow. A
# job is one process: choose slices of one host.
set -euo pipefail
: "${{ZONE:?set the zone of the slices, as in ZONE=us-central1-a bash jobs.sh}}"
topology=${{TOPOLOGY:-v5e-1}}
at_once=${{AT_ONCE:-{at_once}}}
options=("$@")
failures=$(mktemp)
trap 'rm -f "$failures"' EXIT
start() {{ # NAME LOG ARGUMENTS
  local name=$1 log=$2
  shift 2
  while (($(jobs -rp | wc -l) >= at_once)); do sleep 1; done
  {{
    launch/tpu.sh resume "$name" --zone="$ZONE" --topology="$topology" --delete-when-done \\
      ${{options[@]+"${{options[@]}}"}} -- "$@" > "$log" 2>&1 ||
      printf '%s failed; its log is %s\\n' "$name" "$log" | tee -a "$failures" >&2
  }} &
}}
""",
    'start {name} {log} {command}\n',
    'wait\n[[ ! -s $failures ]]\n',
    copies_tree=True,
    has_limit=True,
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


def check_job_scripts(sweep: ResolvedSweep, options: ScriptOptions) -> None:
  """Checks that the machines of the jobs can run them; reads no data.

  Args:
    sweep: the resolved sweep.
    options: how the jobs are written.

  Raises:
    UserError: the machines of the jobs cannot share the workdir, or have no copy of a file that the
      sweep reads; an option does not apply; or a name or path has control characters.
  """
  kind, output = options['jobs'] or '', options.get('output')
  form = FORMS[kind]
  for flag, given, applies in (
    ('at_once', options.get('at_once'), form.has_limit),
    ('shared_files', options.get('shared_files'), form.copies_tree),
  ):
    if given and not applies:
      raise UserError(f'--{flag} is given with --jobs={kind}; it applies to --jobs=queued.')
  if form.copies_tree:
    _check_files_of_workers(kind, sweep, options)
  for what, text in (
    ('config.name', sweep.config.name),
    ('--workdir', str(sweep.workdir)),
    ('--output', output or ''),
    *(('the name of a run', job.name) for job in sweep.jobs),
  ):
    # Quotes protect a shell, but not a comment, a table of jobs or a terminal.
    if has_control_characters(text):
      raise UserError(f'{what} is {text!r}; expected no control characters.')


def _check_files_of_workers(kind: str, sweep: ResolvedSweep, options: ScriptOptions) -> None:
  """Raises UserError where machines with a copy of the committed tree lack a file or folder."""
  if not file_access.is_remote(sweep.workdir):
    raise UserError(
      f'--workdir is {sweep.workdir}, a local folder, which the machines of --jobs={kind} do not '
      'share; expected a bucket (--workdir=gs://BUCKET/SWEEP).'
    )
  if options.get('shared_files'):
    return
  given = [
    # Arguments of a config are values of fields.
    (f'--{flag}', value.partition(':')[0] if flag == 'config' else value)
    for flag in ('config', 'plugins', 'results')
    for value in _values(options.get('arguments', ()), flag)
  ]
  missing = first_missing_file(sweep, given)
  if missing:
    what, value = missing
    raise UserError(
      f'{what} is {value!r}, a local file that is not committed, and the machines of --jobs={kind} '
      'have only the committed tree; expected an address (gs://...) or a committed file, or '
      '--shared_files where those machines see it by the same path.'
    )


def write_job_scripts(sweep: ResolvedSweep, options: ScriptOptions) -> None:
  """Writes jobs.sh, with a command for each job, and table.sh, to run when all have ended.

  Args:
    sweep: the resolved sweep.
    options: how the jobs are written, which `check_job_scripts` has checked.

  Raises:
    UserError: the folder cannot be written.
  """
  form = FORMS[options['jobs'] or '']
  folder = run_folder.folder(options.get('output') or '')
  run_folder.check_writable(folder)
  path = folder / 'jobs.sh'
  shared = ['--mode=sweep', *_repeated(options.get('arguments', ())), f'--workdir={sweep.workdir}']
  text = f'#!/usr/bin/env bash\n# {sweep.config.name}: {len(sweep.jobs)} jobs.\n'
  text += form.head.format(path=shlex.quote(str(path)), at_once=options.get('at_once') or AT_ONCE)
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
    elif not (word.startswith('-') and name in _SWITCHES):
      kept.append(word)
  return kept


def _values(arguments: Sequence[str], flag: str) -> list[str]:
  """The values of a flag among the arguments, given as --flag=value or --flag value."""
  found = []
  for number, word in enumerate(arguments):
    name, equals, value = word.lstrip('-').partition('=')
    if word.startswith('-') and name == flag:
      found.append(value if equals else ''.join(arguments[number + 1 : number + 2]))
  return found


def _cloud_names(sweep: str, jobs: Sequence[SweepJob]) -> list[str]:
  """Distinct names of lowercase letters, digits and -, which cloud resources require."""
  found: list[str] = []
  for number, job in enumerate(jobs):
    name = re.sub(r'[^a-z0-9]+', '-', f'{sweep}-{job.file}'.lower()).strip('-')
    name = name if name[:1].isalpha() else f'sweep-{name}'
    name = name[-50:].lstrip('-0123456789') if len(name) > 50 else name
    found.append(f'{name}-{number}' if name in found or not name else name)
  return found
