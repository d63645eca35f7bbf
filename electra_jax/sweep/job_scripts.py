"""The jobs of a sweep as commands: for SLURM, for TPU slices through queued resources, or for a shell; the scripts are those of launch/."""

import re
import shlex

from electra_jax.console import say
from electra_jax.errors import UserError
from electra_jax.sweep.resolve import Job
from electra_jax.training import run_folder

KINDS = ('slurm', 'queued', 'shell')
_OWN = (
  'jobs',
  'output',
  'only',
  'workdir',
)  # flags that a job's command does not have from the one that wrote it

_HEADS = {
  'slurm': """# Queues every job of the sweep, one process and one GPU each; flags of sbatch come after:
#   bash {path} --partition=gpu --time=4:00:00
# From the repository's root, on a file system that all nodes share. A job that is preempted is queued again and goes on.
set -euo pipefail
""",
  'queued': """# Runs every job of the sweep on a TPU slice of its own, all at once, each with a log beside this file; it ends when all have.
#   ZONE=us-central1-a bash {path} --project=mine
# From the repository's root, on a machine that stays up; options of launch/tpu.sh come after. A job is one process: take slices of one host.
set -euo pipefail
: "${{ZONE:?name the zone of the slices, as in ZONE=us-central1-a bash {path}}}"
topology=${{TOPOLOGY:-v5e-1}}
""",
  'shell': """# Runs every job of the sweep, one after another: bash {path}
# Each line stands alone, to be run wherever the folder of the sweep is to be seen.
set -uo pipefail
failed=0
""",
}


def write(kind: str, output: str | None, config, jobs: list[Job], workdir: str, arguments) -> None:
  """Writes jobs.sh, a command for each job, and table.sh, for when all have ended, into a folder.

  Args:
    kind: of KINDS.
    output: the folder.
    config: of the sweep.
    workdir: of the sweep.
    arguments: of the command line that asked for this.

  Raises UserError where the folder cannot be written, or the workdir is not one that such jobs can share.
  """
  if kind == 'queued' and not run_folder.is_remote(workdir):
    raise UserError(
      f'--jobs=queued runs on machines that go away, and --workdir {workdir} is a folder of this one; name a bucket, --workdir=gs://BUCKET/SWEEP.'
    )
  folder = run_folder.folder(output)
  run_folder.check_writable(folder)
  shared = ['--mode=sweep', *_kept(arguments), f'--workdir={workdir}']
  text = f'#!/usr/bin/env bash\n# {config.name}: {len(jobs)} jobs.\n' + _HEADS[kind].format(
    path=shlex.quote(str(folder / 'jobs.sh'))
  )
  names = _names(config.name, jobs)
  for job, name in zip(jobs, names, strict=True):
    words = shlex.join([*shared, f'--only={job.name}'])
    text += {
      'slurm': f'sbatch --nodes=1 --ntasks-per-node=1 --gpus-per-node=1 --job-name={name} "$@" launch/slurm.sbatch {words}\n',
      'queued': f'launch/tpu.sh resume {name} --zone="$ZONE" --topology="$topology" --delete-when-done "$@" -- {words} '
      f'> {shlex.quote(str(folder / f"{name}.log"))} 2>&1 &\n',
      'shell': f'"${{PYTHON:-python}}" -m electra_jax.main {words} || failed=1\n',
    }[kind]
  text += {'slurm': '', 'queued': 'wait\n', 'shell': 'exit "$failed"\n'}[kind]
  table = f'"${{PYTHON:-python}}" -m electra_jax.main {shlex.join([*shared, "--only=table"])}'
  run_folder.write_bytes(folder / 'jobs.sh', text.encode())
  run_folder.write_bytes(
    folder / 'table.sh',
    f'#!/usr/bin/env bash\n# When the jobs have ended: the table and the picture of all of them.\n{table}\n'.encode(),
  )
  say(
    'written',
    f'{folder / "jobs.sh"}: {len(jobs)} jobs; {folder / "table.sh"}: the table, when they have ended',
  )
  say('next', f'bash {folder / "jobs.sh"}')


def _kept(arguments) -> list[str]:
  """The arguments less --mode and the flags of _OWN, in either form: --flag=value, or --flag value."""
  kept, skip = [], False
  for word in arguments:
    name, equals, _ = word.lstrip('-').partition('=')
    if skip or word.startswith('-') and name in (*_OWN, 'mode'):
      skip = not skip and not equals
    else:
      kept.append(word)
  return kept


def _names(sweep: str, jobs: list[Job]) -> list[str]:
  """Names of small letters, digits and -, as the clouds want them, no two alike."""
  found = []
  for number, job in enumerate(jobs):
    name = re.sub(r'[^a-z0-9]+', '-', f'{sweep}-{job.file}'.lower()).strip('-')
    name = name if name[:1].isalpha() else f'sweep-{name}'
    name = name[-50:].lstrip('-0123456789') if len(name) > 50 else name
    found.append(f'{name}-{number}' if name in found or not name else name)
  return found
