"""A simulated cloud: a `gcloud` on the PATH whose requests, VMs and connections follow a script.

Workers are folders in which launch/worker.sh really runs; the trainer is a few lines of bash.
"""

import json
import os
import pathlib
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]

GCLOUD = r"""
import json, os, pathlib, sys
cloud = pathlib.Path(os.environ['CLOUD'])
script = json.loads((cloud / 'script.json').read_text())
args = sys.argv[1:]

def count(name):  # number of calls so far, including this one
  path = cloud / ('count-' + name)
  number = int(path.read_text()) + 1 if path.exists() else 1
  path.write_text(str(number))
  return number

def note(action):
  with open(cloud / 'actions', 'a') as file:
    file.write(action + '\n')
  with open(cloud / 'calls', 'a') as file:
    file.write(json.dumps(args) + '\n')

def life():  # the script of the latest request; None without a request
  made = int((cloud / 'count-create').read_text()) if (cloud / 'count-create').exists() else 0
  if (cloud / 'absent').exists() or not made:
    return None
  return script['lives'][min(made, len(script['lives'])) - 1]

def take_away():
  import shutil, signal
  for home in cloud.glob('worker-*'):
    group = home / 'electra_jax_job' / 'group'
    if group.exists():
      try:
        os.killpg(int(group.read_text()), signal.SIGKILL)
      except ProcessLookupError:
        pass
    shutil.rmtree(home)

def on_workers(indices, command):  # in parallel, as gcloud does; output is printed per worker
  import subprocess
  started = []
  for index in indices:
    home = cloud / f'worker-{index}'
    home.mkdir(exist_ok=True)
    env = dict(os.environ, HOME=str(home), WORKER=str(index))
    started.append(subprocess.Popen(['bash', '-c', command], env=env, cwd=home,
                                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE))
  for process in started:
    sys.stdout.buffer.write(process.communicate()[0])
  sys.stdout.flush()
  return [process.returncode for process in started]

verb = next(after for word, after in zip(args, args[1:]) if word in ('queued-resources', 'tpu-vm'))
asked = count(verb) if verb in ('create', 'describe') else 0
if verb == 'create':
  note('create')
  if asked in script.get('create_fails', []):
    (cloud / 'absent').touch()
    sys.exit('ERROR: quota')
  (cloud / 'absent').unlink(missing_ok=True)
  (cloud / 'count-describe').unlink(missing_ok=True)
  (cloud / 'taken').unlink(missing_ok=True)
elif verb == 'describe':
  if script.get('no_answer'):
    sys.exit('ERROR: there is no account')
  if (now := life()) is None:
    sys.exit('ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: '
             'Resource was not found')
  state = now['states'][min(asked, len(now['states'])) - 1]
  print('SUSPENDED' if (cloud / 'taken').exists() else state)
elif verb == 'delete':
  note('delete')
  take_away()
  (cloud / 'absent').touch()
elif verb == 'list':
  for _ in range(script.get('slices', 1)):
    print(script['workers'])
elif verb == 'simulate-maintenance-event':
  note('simulate')
elif verb == 'scp':
  import shutil
  note('scp')
  source, target = args[args.index(verb) + 1:][:2]
  for index in range(script['workers']):
    (cloud / f'worker-{index}').mkdir(exist_ok=True)
    shutil.copy(source, cloud / f'worker-{index}' / target.partition(':')[2])
elif verb == 'ssh':
  command = next(arg for arg in args if arg.startswith('--command=')).removeprefix('--command=')
  words = command.partition('electra_jax/launch/worker.sh ')[2].split()
  action = 'setup' if 'tar -xzf' in command else words[0]
  note(action)
  asked = count('ssh-' + action)
  if action == 'state' and asked == (life() or {}).get('taken_at'):
    take_away()
    (cloud / 'taken').touch()
  if (cloud / 'taken').exists() or asked in script.get('drops', {}).get(action, []):
    sys.exit(255)
  everyone = range(script['workers']) if '--worker=all' in args else [0]
  silent = script.get('left_out', {}).get(action, [])
  results = on_workers([index for index in everyone if not (asked in silent and index)], command)
  if asked in script.get('drops_after', {}).get(action, []):
    sys.exit(255)
  sys.exit(max(results))
"""

# The n-th start on a worker runs the n-th script; later starts run the last one.
PYTHON = r"""#!/bin/bash
if [[ $2 == pip ]]; then echo "pip ${*:3}" >> "$CLOUD/installs"; exit; fi
n=$(($(cat "$CLOUD/starts-$WORKER" 2> /dev/null || echo 0) + 1))
echo $n > "$CLOUD/starts-$WORKER"
printf '%s\n' "$@" > "$CLOUD/arguments-$WORKER"
env > "$CLOUD/environment-$WORKER"
script=$CLOUD/trainer-$n-$WORKER
for found in "$script" "$CLOUD/trainer-$n" "$CLOUD/trainer-last-$WORKER" "$CLOUD/trainer-last"; do
  if [[ -e $found ]]; then exec bash "$found"; fi
done
"""

MAKE = r"""#!/bin/bash
for word in "$@"; do case $word in VENV=*) venv=${word#*=} ;; esac; done
echo "make $*" >> "$CLOUD/installs"
mkdir -p "$venv/bin" && cp "$CLOUD/bin/trainer" "$venv/bin/python" && touch "$venv/.installed"
"""

UNTIL_ASKED = "trap 'exit 42' TERM; echo running; while :; do sleep 0.05; done"


def write_status(step: int, reason: str = 'null') -> str:
  """Bash that writes a status file as the trainer does; `reason` as JSON."""
  lines = ['{', '  "format": 1,', f'  "restored_step": {step},', f'  "exit_reason": {reason}', '}']
  return f'printf "%s\\n" {" ".join(map(shlex.quote, lines))} > "$ELECTRA_JAX_STATUS"'


def executable(path: pathlib.Path, text: str) -> None:
  path.write_text(text)
  path.chmod(path.stat().st_mode | stat.S_IXUSR)


class Cloud:
  """The simulated cloud in a folder.

  `plan` takes the bash script of each start; a dict has one script per worker.
  """

  def __init__(self, folder: pathlib.Path, repository: pathlib.Path):
    self.folder = folder
    self.repository = repository
    bin = folder / 'bin'
    bin.mkdir()
    executable(bin / 'gcloud', f'#!{sys.executable} -IS\n{GCLOUD}')
    executable(bin / 'trainer', PYTHON)
    executable(bin / 'make', MAKE)
    executable(bin / 'hostname', '#!/bin/bash\necho "w-$WORKER"\n')
    executable(bin / 'sudo', '#!/bin/bash\necho "$@" >> "$CLOUD/sudo"\n')
    executable(bin / 'python3.12', '#!/bin/bash\n')
    self.env = {
      'PATH': f'{bin}:/usr/local/bin:/usr/bin:/bin',
      'HOME': str(folder),
      'CLOUD': str(folder),
    }

  def plan(self, *trainers, lives=({'states': ['ACTIVE']},), workers=1, **script):
    (self.folder / 'script.json').write_text(
      json.dumps(dict(script, lives=list(lives), workers=workers))
    )
    for number, trainer in enumerate(trainers, 1):
      for worker, text in trainer.items() if isinstance(trainer, dict) else [(None, trainer)]:
        names = [str(number)] + (['last'] if number == len(trainers) else [])
        for name in names:
          (self.folder / ('trainer-' + name + ('' if worker is None else f'-{worker}'))).write_text(
            text
          )

  def command(self, *words):
    return ['bash', str(self.repository / 'launch' / 'tpu.sh'), *words]

  def start(self, *words) -> subprocess.Popen:
    return subprocess.Popen(
      self.command(*words), env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

  def run(self, *words, timeout=60) -> subprocess.CompletedProcess:
    return subprocess.run(
      self.command(*words), env=self.env, capture_output=True, text=True, timeout=timeout
    )

  def resume(self, *options, arguments=('--config=configs/base.py', '--workdir=gs://bucket/run')):
    return self.run(*self.resuming(*options, arguments=arguments))

  def resuming(self, *options, arguments=('--config=configs/base.py', '--workdir=gs://bucket/run')):
    return [
      'resume',
      'mine',
      '--zone=us-west4-a',
      '--topology=v5e-8',
      '--interval=0.01',
      '--patience=5',
      *options,
      '--',
      *arguments,
    ]

  def actions(self, polls=False) -> list[str]:
    """Requests to the cloud, in order; without `polls` only those that change something."""
    path = self.folder / 'actions'
    lines = path.read_text().split() if path.exists() else []
    return [line for line in lines if polls or line not in ('state', 'log', 'tail')]

  def calls(self, verb) -> list[list[str]]:
    return [
      call
      for call in map(json.loads, (self.folder / 'calls').read_text().splitlines())
      if verb in call
    ]

  def starts(self, worker=0) -> int:
    path = self.folder / f'starts-{worker}'
    return int(path.read_text()) if path.exists() else 0

  def read(self, name) -> str:
    path = self.folder / name
    return path.read_text() if path.exists() else ''

  def wait_for(self, condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
      assert time.monotonic() < end, self.actions(polls=True)
      time.sleep(0.02)

  def close(self):
    for path in self.folder.glob('worker-*/electra_jax_job/group'):
      try:
        os.killpg(int(path.read_text()), signal.SIGKILL)
      except (ProcessLookupError, ValueError):
        pass


def make_repository(folder: pathlib.Path) -> pathlib.Path:
  """A git repository with the launch scripts and the lists of packages."""
  shutil.copytree(ROOT / 'launch', folder / 'launch')
  for path in (ROOT / 'pyproject.toml', *ROOT.glob('requirements*.txt')):
    shutil.copy(path, folder)
  for command in (
    'init -q',
    'add .',
    '-c user.name=test -c user.email=test@example.org commit -qm all',
  ):
    subprocess.run(
      ['git', '-C', str(folder), *shlex.split(command)], check=True, capture_output=True
    )
  return folder
