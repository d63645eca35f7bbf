"""launch/tpu.sh against a simulated cloud: requests, restarts after failures, and when it stops."""

import json
import os
import shlex
import shutil
import signal
import subprocess

import launch_cloud
import pytest
from launch_cloud import UNTIL_ASKED

pytestmark = pytest.mark.skipif(
  not all(map(shutil.which, ('bash', 'git', 'flock', 'setsid'))),
  reason='needs bash, git, flock and setsid, as the workers have',
)
ROUND = ['scp', 'setup', 'start']  # what each attempt does on an active slice


@pytest.fixture(scope='module')
def repository(tmp_path_factory):
  return launch_cloud.make_repository(tmp_path_factory.mktemp('repository'))


@pytest.fixture
def cloud(tmp_path, repository):
  cloud = launch_cloud.Cloud(tmp_path, repository)
  yield cloud
  cloud.close()


#### The loop ####


def test_it_waits_for_the_slice_sets_it_up_runs_and_says_what_remains(cloud):
  waits = ['CREATING', 'WAITING_FOR_RESOURCES', 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE']
  cloud.plan('echo "step 1"; echo "step 2" >&2', lives=[{'states': waits}], workers=2)
  done = cloud.resume()
  assert done.returncode == 0, done.stderr
  assert cloud.actions() == ['create', *ROUND]
  assert done.stdout.splitlines().count('step 1') == done.stdout.splitlines().count('step 2') == 1
  assert done.stderr.count('is WAITING_FOR_RESOURCES') == 1  # each state is told once
  assert 'is billed' in done.stderr and 'launch/tpu.sh delete mine --zone=us-west4-a' in done.stderr
  assert cloud.starts(0) == cloud.starts(1) == 1


def test_a_finished_run_is_deleted_where_that_was_asked_for(cloud):
  cloud.plan('exit 0')
  assert cloud.resume('--delete-when-done').returncode == 0
  assert cloud.actions() == ['create', *ROUND, 'delete']


def test_vms_taken_away_in_the_middle_are_replaced(cloud):
  cloud.plan(
    UNTIL_ASKED,
    'exit 0',
    lives=[{'states': ['ACTIVE'], 'taken_at': 3}, {'states': ['PROVISIONING', 'ACTIVE']}],
  )
  done = cloud.resume()
  assert done.returncode == 0, done.stderr
  assert cloud.actions() == ['create', *ROUND, 'delete', 'create', *ROUND]
  assert '--force' in cloud.calls('delete')[0]
  assert 'the VMs are gone' in done.stderr


def test_a_request_that_failed_is_replaced_but_not_for_ever(cloud):
  cloud.plan(
    'exit 0', lives=[{'states': ['FAILED']}, {'states': ['FAILED']}, {'states': ['ACTIVE']}]
  )
  assert cloud.resume().returncode == 0
  assert cloud.actions() == ['create', 'delete'] * 2 + ['create', *ROUND]


def test_a_request_that_fails_three_times_is_given_up(cloud):
  cloud.plan('exit 0', lives=[{'states': ['PROVISIONING', 'FAILED']}])
  done = cloud.resume()
  assert done.returncode == 1
  assert cloud.actions() == ['create', 'delete'] * 3
  assert 'the same failure occurred three times (FAILED)' in done.stderr


def test_a_request_that_is_refused_is_tried_three_times(cloud):
  cloud.plan('exit 0', create_fails=[1, 2, 3])
  done = cloud.resume()
  assert done.returncode == 1 and cloud.actions() == ['create'] * 3
  assert 'quota' in done.stderr


def test_a_connection_that_drops_is_no_failure(cloud):
  cloud.plan('sleep 0.5', drops={'state': [2, 3], 'log': [1, 3]})
  done = cloud.resume()
  assert done.returncode == 0, done.stderr
  assert cloud.actions() == ['create', *ROUND]
  assert cloud.starts() == 1


def test_a_connection_that_drops_while_starting_starts_no_second_trainer(cloud):
  cloud.plan('sleep 1', drops_after={'start': [1]})
  done = cloud.resume()
  assert done.returncode == 0, done.stderr
  assert cloud.actions() == ['create', *ROUND]  # the second attempt finds the job running
  assert cloud.starts() == 1


def test_a_worker_that_was_left_out_without_an_error_is_noticed(cloud):
  cloud.plan('exit 0', left_out={'setup': [1]}, workers=2)
  done = cloud.resume()
  assert done.returncode == 0, done.stderr
  assert 'failed: setup' in done.stderr
  assert cloud.actions() == ['create', 'scp', 'setup', *ROUND]
  assert cloud.starts(0) == cloud.starts(1) == 1


@pytest.mark.parametrize('status', [pytest.param(1, marks=pytest.mark.long), 43, 139])
def test_after_a_failure_the_same_command_goes_on(cloud, status):
  cloud.plan(
    {
      0: 'echo "the last words"; exit 43' if status == 43 else 'exit 43',
      1: f'echo "of worker 1"; exit {status}',
    },
    'exit 0',
    workers=2,
  )
  done = cloud.resume()
  assert done.returncode == 0, done.stderr
  assert cloud.actions() == ['create', *ROUND, *ROUND]
  assert f'status {status}' in done.stderr and 'w-1 | of worker 1' in done.stderr


def test_preempted_runs_go_on_however_often(cloud):
  cloud.plan('exit 42', 'exit 42', 'exit 42', 'exit 0')
  assert cloud.resume().returncode == 0
  assert cloud.actions() == ['create', *ROUND * 4]


def test_the_same_failure_three_times_stops(cloud):
  cloud.plan({0: 'exit 43', 1: 'echo "electra_jax: the fault"; exit 139'}, workers=2)
  done = cloud.resume()
  assert done.returncode == 139
  assert cloud.actions() == ['create', *ROUND * 3]
  assert done.stderr.count('w-1 | electra_jax: the fault') == 3
  assert 'three times' in done.stderr and 'launch/tpu.sh delete mine' in done.stderr


def test_steps_saved_between_failures_keep_it_going(cloud):
  restored = [f'{launch_cloud.write_status(step)}; exit 139' for step in (0, 0, 1_800)]
  cloud.plan(*restored, 'exit 0')
  done = cloud.resume()
  assert done.returncode == 0, done.stderr
  assert cloud.starts() == 4


def test_the_exit_reason_of_a_start_is_printed_once_and_not_after_the_next_one(cloud):
  fault = f'{launch_cloud.write_status(1_800, chr(34) + "the fault, in full." + chr(34))}; exit 1'
  cloud.plan({0: fault, 1: 'exit 43'}, 'exit 1', 'exit 1', workers=2)
  done = cloud.resume()
  assert done.returncode == 1 and cloud.starts() == 3
  assert done.stderr.count('w-0 | exit reason: the fault, in full.\n') == 1


def test_a_worker_that_hangs_when_another_crashed_is_ended(cloud):
  cloud.plan({0: "trap '' TERM; while :; do sleep 0.05; done", 1: 'exit 139'}, 'exit 0', workers=2)
  done = cloud.resume('--patience=2')  # also the seconds until the worker is killed
  assert done.returncode == 0, done.stderr
  assert cloud.actions() == ['create', *ROUND, 'stop', *ROUND]


def test_without_an_answer_from_the_cloud_it_ends_with_what_gcloud_said(cloud):
  cloud.plan('exit 0', no_answer=True)
  done = cloud.resume()
  assert done.returncode == 1 and 'there is no account' in done.stderr and cloud.actions() == []


def test_interrupted_it_leaves_the_job_and_says_how_to_delete_and_then_finds_it_again(cloud):
  cloud.plan(UNTIL_ASKED, workers=2)
  for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
    asked = cloud.actions(polls=True).count('state')
    loop = cloud.start(*cloud.resuming())
    cloud.wait_for(lambda asked=asked: cloud.actions(polls=True).count('state') >= asked + 3)
    loop.send_signal(number)
    _, err = loop.communicate(timeout=20)
    assert loop.returncode == status
    assert 'launch/tpu.sh delete mine --zone=us-west4-a' in err
  asked = len(cloud.actions(polls=True))

  # Another command does not take its place; the same one goes on following.
  other = cloud.resume(arguments=['--config=configs/large.py'])
  assert other.returncode == 1 and 'another command is running on mine' in other.stderr
  script = json.loads(cloud.read('script.json'))
  script['left_out'] = {
    'state': [cloud.actions(polls=True).count('state') + 1]
  }  # nor does a worker that gives no answer at once
  (cloud.folder / 'script.json').write_text(json.dumps(script))
  loop = cloud.start(*cloud.resuming())
  cloud.wait_for(lambda: len(cloud.actions(polls=True)) > asked + 4)
  assert cloud.actions() == ['create', *ROUND]
  cloud.plan(UNTIL_ASKED, 'exit 0', workers=2)
  assert cloud.run('stop', 'mine', '--zone=us-west4-a').returncode == 0
  out, err = loop.communicate(timeout=30)
  assert loop.returncode == 0 and 'running' in out and 'preempted' in err, err
  assert cloud.actions() == ['create', *ROUND, 'stop', *ROUND]


#### Other commands ####


def test_commands_by_hand(cloud):
  cloud.plan("trap 'exit 42' TERM; echo hello; sleep 0.3; exit 0", workers=2)
  here = ('mine', '--zone=us-west4-a', '--interval=0.01')
  assert 'is absent' in cloud.run('status', *here).stderr
  assert cloud.run('delete', *here).returncode == 0 and cloud.actions() == []
  assert cloud.run('create', *here, '--topology=v5e-8').returncode == 0
  again = cloud.run('create', *here, '--topology=v5e-8')
  assert again.returncode == 0 and 'already exists' in again.stderr
  assert cloud.actions() == ['create']
  assert cloud.run('setup', *here).returncode == 0
  done = cloud.run('run', *here, '--', '--config=configs/tiny.py')
  assert done.returncode == 0 and done.stdout == 'hello\n'
  assert 'w-1 | hello' in cloud.run('logs', *here).stdout
  assert [line.split()[1::2][:2] for line in cloud.run('status', *here).stdout.splitlines()] == [
    ['w-0', 'exited'],
    ['w-1', 'exited'],
  ]
  assert cloud.run('simulate-maintenance', *here, '--workers=1').returncode == 0
  assert (
    cloud.calls('simulate-maintenance-event')[0][:2] == ['alpha', 'compute']
    and '--workers=1' in cloud.calls('simulate-maintenance-event')[0]
  )
  assert cloud.run('delete', *here).returncode == 0 and cloud.actions()[-1] == 'delete'


def test_setting_up_does_not_touch_a_running_job(cloud):
  cloud.plan(UNTIL_ASKED)
  loop = cloud.start(*cloud.resuming())
  cloud.wait_for(lambda: cloud.actions(polls=True).count('state') >= 3)
  done = cloud.run('setup', 'mine', '--zone=us-west4-a')
  assert done.returncode == 1 and 'a job is running' in done.stderr
  assert loop.poll() is None
  loop.terminate()
  loop.communicate(timeout=20)


def test_packages_are_installed_once_and_again_when_their_list_changes(cloud):
  cloud.plan('exit 0')
  cloud.resume()
  here = ('setup', 'mine', '--zone=us-west4-a')
  assert cloud.run(*here).returncode == 0
  installs = cloud.read('installs').splitlines()
  assert len(installs) == 2 and 'install VENV=' in installs[0]
  locks = ('requirements.txt', 'requirements-tpu.txt', 'requirements-gcs.txt')
  required = ' '.join(f'--requirement {name}' for name in locks)
  assert installs[1].endswith(f'--require-hashes {required}')
  assert cloud.run(*here, '--extras=tpu').returncode == 0
  assert len(cloud.read('installs').splitlines()) == 4
  assert cloud.run(*here, '--extras=tpu,test').returncode == 1
  assert 'disable --now unattended-upgrades.service' in cloud.read('sudo')


def test_an_image_with_an_old_python_gets_one_from_uv(cloud):
  cloud.plan('exit 0')
  bin = cloud.folder / 'bin'
  for name in ('python3.13', 'python3.12', 'python3.11'):
    launch_cloud.executable(bin / name, '#!/bin/bash\nexit 1\n')
  # As Ubuntu 22.04's: it has pip and no more.
  launch_cloud.executable(
    bin / 'python3',
    r"""#!/bin/bash
[[ $1 == -m ]] || exit 1
[[ $3 == install ]] || exit 0
echo "$@" >> "$CLOUD/installs"
mkdir -p "$HOME/electra_jax_uv/bin"
printf '#!/bin/bash\n[[ $2 != find ]] || echo /uv/python3.12\n' > "$HOME/electra_jax_uv/bin/uv"
chmod +x "$HOME/electra_jax_uv/bin/uv"
""",
  )
  assert cloud.resume().returncode == 0
  assert 'PYTHON=/uv/python3.12' in cloud.read('installs')


def test_the_trainer_gets_its_arguments_and_environment_unharmed(cloud):
  cloud.plan('exit 0')
  arguments = [
    '--config=configs/base.py:batch=4',
    "--config.data.source=a b/*.txt;field=it's",
    '--workdir=gs://b/$HOME',
  ]
  done = cloud.resume('--env=LIBTPU_INIT_ARGS=--a=1 --b="2"', arguments=arguments)
  assert done.returncode == 0, done.stderr
  assert cloud.read('arguments-0').splitlines() == [
    '-m',
    'electra_jax.main',
    *arguments,
    '--distributed=cluster',
  ]
  environment = dict(
    line.split('=', 1) for line in cloud.read('environment-0').splitlines() if '=' in line
  )
  assert environment['LIBTPU_INIT_ARGS'] == '--a=1 --b="2"'
  assert environment['JAX_COORDINATOR_PORT'] == '8476'
  assert environment['TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS'] == '60'
  assert environment['TPU_MIN_LOG_LEVEL'] == '2'
  assert environment['ELECTRA_JAX_STATUS'].endswith('worker-0/electra_jax_job/status.json')


def test_no_flags_of_libtpu_unless_asked_for(cloud):
  cloud.plan('exit 0')
  assert cloud.resume().returncode == 0
  assert 'LIBTPU_INIT_ARGS' not in cloud.read('environment-0')


#### Arguments ####


@pytest.mark.parametrize(
  'words, complaint',
  [
    ((), 'no command'),
    (('fly', 'mine'), "'fly' is not a command"),
    (('status', 'mine'), '--zone is missing'),
    (('status', '--zone=z'), 'NAME'),
    (('create', 'mine', '--zone=z'), '--topology is missing'),
    (('create', 'mine', '--zone=z', '--topology=v5e'), 'v5e-16'),
    (('create', 'mine', '--zone=z', '--topology=tpu7x-64'), 'GKE'),
    (('create', 'Mine', '--zone=z', '--topology=v4-8'), 'NAME'),
    (('status', 'mine', 'yours', '--zone=z'), 'is an unexpected argument'),
    (('status', 'mine', '--zone=z', '--fast'), '--fast'),
    (('resume', 'mine', '--zone=z', '--topology=v4-8'), '--config'),
    (('run', 'mine', '--zone=z', '--', '--workdir=w'), '--config'),
    (('delete', 'mine', '--zone=z', '--', '--config=c'), 'accepts no arguments'),
    (('logs', 'mine', '--zone=z', '--interval=x'), 'numbers'),
  ],
)
def test_wrong_arguments_end_with_usage(cloud, words, complaint):
  cloud.plan('exit 0')
  done = cloud.run(*words)
  assert done.returncode == 2 and not done.stdout
  assert complaint in done.stderr.splitlines()[0] and 'launch/tpu.sh COMMAND NAME' in done.stderr
  assert cloud.actions() == []


def test_help_is_no_mistake(cloud):
  for words in (['--help'], ['resume', '--help']):
    done = cloud.run(*words)
    assert done.returncode == 0 and 'launch/tpu.sh COMMAND NAME' in done.stdout and not done.stderr


def dry_run(cloud, action, *words):
  done = cloud.run(action, '--dry-run', *words)
  assert done.returncode == 0, done.stderr
  assert cloud.actions() == [] and not (cloud.folder / 'count-describe').exists()
  return [shlex.split(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
  'topology, accelerator, image, nodes',
  [
    ('v5e-16', 'v5litepod-16', 'v2-alpha-tpuv5-lite', ['--node-id=mine']),
    ('v5p-128', 'v5p-128', 'v2-alpha-tpuv5', ['--node-id=mine']),
    ('v6e-64', 'v6e-64', 'v2-alpha-tpuv6e', ['--node-id=mine']),
    ('v4-8', 'v4-8', 'tpu-ubuntu2204-base', ['--node-id=mine']),
    ('2xv5e-256', 'v5litepod-256', 'v2-alpha-tpuv5-lite', ['--node-count=2', '--node-prefix=mine']),
  ],
)
def test_each_generation_gets_its_image(cloud, topology, accelerator, image, nodes):
  _, create = dry_run(cloud, 'create', 'mine', '--zone=z', f'--topology={topology}')
  assert create[:6] == ['gcloud', 'compute', 'tpus', 'queued-resources', 'create', 'mine']
  assert create[6:] == [
    *nodes,
    f'--accelerator-type={accelerator}',
    f'--runtime-version={image}',
    '--spot',
    '--zone=z',
    '--quiet',
  ]


def test_capacity_is_chosen(cloud):
  _, create = dry_run(
    cloud,
    'create',
    'mine',
    '--zone=z',
    '--topology=v4-8',
    '--on-demand',
    '--valid-until=6h',
    '--project=p',
    '--create-flag=--reserved',
    '--runtime-version=other',
  )
  assert create[6:] == [
    '--node-id=mine',
    '--accelerator-type=v4-8',
    '--runtime-version=other',
    '--valid-after-duration=0s',
    '--valid-until-duration=6h',
    '--reserved',
    '--zone=z',
    '--project=p',
    '--quiet',
  ]


def test_a_dry_run_prints_the_whole_way(cloud):
  lines = dry_run(
    cloud,
    'resume',
    'mine',
    '--zone=z',
    '--topology=v5e-16',
    '--delete-when-done',
    '--env=A=b c',
    '--ssh-flag=--tunnel-through-iap',
    '--',
    '--config=configs/base.py',
    "--workdir=gs://b/it's",
  )
  verbs = [line[4] if line[:2] == ['gcloud', 'compute'] else line[0] for line in lines]
  assert verbs == [
    'git',
    'describe',
    'create',
    'describe',
    'list',
    'ssh',
    'scp',
    'ssh',
    'ssh',
    'ssh',
    'ssh',
    'ssh',
    'delete',
  ]
  (start,) = [
    word for line in lines for word in line if word.startswith('--command=') and ' start ' in word
  ]
  words = shlex.split(start.removeprefix('--command='))
  assert words[:3] == ['bash', 'electra_jax/launch/worker.sh', 'start']
  assert words[4:] == [
    'A=b c',
    '--',
    '--config=configs/base.py',
    "--workdir=gs://b/it's",
    '--distributed=cluster',
  ]
  assert all('--tunnel-through-iap' in line for line in lines if line[4] in ('ssh', 'scp'))


@pytest.mark.skipif(not shutil.which('gcloud'), reason='needs the Google Cloud CLI')
def test_the_real_gcloud_knows_these_commands_and_flags(cloud, tmp_path):
  """gcloud parses the command line before it requires an account, so no request is made."""
  done = cloud.run(
    'resume',
    'mine',
    '--zone=z',
    '--project=p',
    '--topology=2xv5e-16',
    '--valid-until=6h',
    '--dry-run',
    '--',
    '--config=configs/base.py',
  )
  lines = {line.split()[4]: line for line in done.stdout.splitlines() if line.startswith('gcloud')}
  env = dict(
    os.environ,
    CLOUDSDK_CONFIG=str(tmp_path / 'nobody'),
    CLOUDSDK_CORE_CHECK_GCE_METADATA='0',
    HOME=str(tmp_path),
    CLOUDSDK_CORE_DISABLE_PROMPTS='1',
  )
  for verb in ('create', 'ssh'):
    asked = subprocess.run(
      ['bash', '-c', lines[verb]], env=env, capture_output=True, text=True, timeout=120
    )
    assert asked.returncode == 1 and 'active account' in asked.stderr, asked.stderr
  wrong = subprocess.run(
    ['bash', '-c', lines['create'] + ' --no-such-flag'],
    env=env,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert wrong.returncode == 2 and 'unrecognized' in wrong.stderr
