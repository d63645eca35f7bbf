"""Makes tests/versions/0.1.0.tar.xz, the input of tests/versions_test.py.

It holds what the commands of version 0.1.0 write:

    git worktree add --detach ../electra_jax-0.1.0 641b850
    python tests/versions/make_0_1_0.py ../electra_jax-0.1.0

Config files are in tests/versions/0.1.0/configs. The archive was made once. Run the script again
only to add a kind of folder. It refuses every commit but 641b850. It requires the packages of
requirements.txt at that commit, and about three minutes of one CPU core.

A run that gets SIGTERM saves at the next step, which depends on the speed of the machine.
`expected` is computed from the folders of the same run of this script.

All paths in the archive are relative, so the commands of the tests run in the folder that it is
extracted to, beside a copy of `configs`.

    corpus.txt, glue/, ner/       text and labeled examples, drawn with a fixed seed
    store/                        token store, by --mode=prepare
    electra/, modern/             pretraining runs that were stopped by SIGTERM
    exports/                      --mode=export of electra, modern and finetuned
    finetuned/                    fine-tuned run, complete
    finetuned_stopped/            fine-tuned run that was stopped by SIGTERM in its second trial
    expected/                     what version 0.1.0 computes from these folders, see `record`
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time

COMMIT = '641b850'
HERE = pathlib.Path(__file__).resolve().parent
PREEMPTED = 42  # exit status of a run that was stopped by SIGTERM
SYLLABLES = 'ba ko ti ru me sa lo ni pe du fa gi'.split()
TEXTS = ['bako tiru mesa', 'Loni, pedu! fagi', 'ba']

# Runs in a process of version 0.1.0. Argument: the folder to write to.
OUTPUTS = """
import json, pathlib, sys
import numpy as np
import electra_jax

out = pathlib.Path(sys.argv[1])
texts = json.loads((out / 'texts.json').read_text())
for name in ('electra', 'modern'):
  reading = electra_jax.load(name)(texts)
  np.savez_compressed(
    out / f'{name}.npz', hidden_states=reading.hidden_states, replaced=reading.replaced
  )
  (out / f'{name}.tokens.json').write_text(json.dumps(reading.tokens) + '\\n')
"""

# Runs in a process of version 0.1.0. Arguments: a run's folder, the file to write to.
PARAMETERS = """
import sys
import jax, numpy as np
import electra_jax

leaves = jax.tree_util.tree_leaves_with_path(electra_jax.load(sys.argv[1]).params)
np.savez_compressed(
  sys.argv[2], **{'/'.join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}
)
"""


def write(path: pathlib.Path, text: str) -> None:
  """Writes a text file and the folders above it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text, 'utf-8')


def make_data(folder: pathlib.Path) -> None:
  """Writes the corpus and the examples of the tasks, of made-up words.

  The last word of an example determines its label.
  """
  rng = random.Random(0)
  words = [''.join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(300)]
  documents = [' '.join(rng.choices(words, k=rng.randint(30, 60))) + '.' for _ in range(80)]
  write(folder / 'corpus.txt', '\n\n'.join(documents) + '\n')
  for part, count in (('train', 40), ('dev', 24)):
    sentences = [
      (' '.join([*rng.choices(words, k=rng.randint(2, 6)), ['dufa', 'salo'][label]]), label)
      for label in (rng.randint(0, 1) for _ in range(count))
    ]
    rows = [f'made\t{label}\t\t{text}\n' for text, label in sentences]
    write(folder / 'glue' / 'CoLA' / f'{part}.tsv', ''.join(rows))
    tags = {'dufa': 'B-X', 'salo': 'B-Y'}
    blocks = [
      ''.join(f'{word} {tags.get(word, "O")}\n' for word in text.split()) for text, _ in sentences
    ]
    write(folder / 'ner' / f'{part}.conll', '\n'.join(blocks))


class Version:
  """Commands of a checkout, run in a folder.

  Args:
    checkout: Folder of the checkout.
    folder: Working directory of the commands.
    programs: Folder for compiled programs.
  """

  def __init__(self, checkout: pathlib.Path, folder: pathlib.Path, programs: pathlib.Path) -> None:
    self.folder = folder
    self.environment = os.environ | {
      'PYTHONPATH': str(checkout),
      'JAX_PLATFORMS': 'cpu',
      # Programs that LLVM does not optimize compile faster and compute the same up to rounding.
      'XLA_FLAGS': '--xla_backend_optimization_level=0',
      'JAX_COMPILATION_CACHE_DIR': str(programs),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }

  def start(self, *argv: str, **popen) -> subprocess.Popen:
    """Starts `python ARGV`."""
    popen = {'cwd': self.folder} | popen
    return subprocess.Popen([sys.executable, *argv], env=self.environment, **popen)

  def python(self, *argv: str, status: int = 0, **popen) -> None:
    """Runs `python ARGV`; raises RuntimeError for another exit status than `status`."""
    returned = self.start(*argv, **popen).wait()
    if returned != status:
      raise RuntimeError(f'{argv} ended with exit status {returned}, not {status}')

  def run(self, *flags: str, **options) -> None:
    """Runs a command of the package."""
    self.python('-m', 'electra_jax.main', *flags, **options)

  def stopped(self, workdir: str, metrics: str, step: int, *flags: str) -> None:
    """Runs a command and stops it with SIGTERM after `step`.

    Starts again from where the folder was if the run ended before the signal came.

    Args:
      workdir: The run's folder, relative.
      metrics: The metrics.jsonl that is watched, relative to `workdir`.
      step: The step to wait for.
      *flags: The command.
    """
    before = self.folder / f'{workdir}.before'
    path = self.folder / workdir / metrics
    if (self.folder / workdir).exists():
      shutil.copytree(self.folder / workdir, before)
    for _ in range(10):
      process = self.start('-m', 'electra_jax.main', *flags)
      while process.poll() is None and last_step(path) < step:
        time.sleep(0.001)
      process.send_signal(signal.SIGTERM)
      status = process.wait()
      if status == PREEMPTED:
        shutil.rmtree(before, ignore_errors=True)
        return
      if status != 0:
        raise RuntimeError(f'{flags} ended with exit status {status}')
      shutil.rmtree(self.folder / workdir)  # it was complete before the signal came
      if before.exists():
        shutil.copytree(before, self.folder / workdir)
    raise RuntimeError(f'{workdir} was never stopped in time')


def last_step(path: pathlib.Path) -> int:
  """The step of the last complete line of a metrics.jsonl, 0 if there is none."""
  lines = path.read_text('utf-8').split('\n')[:-1] if path.exists() else []
  return json.loads(lines[-1])['step'] if lines else 0


def make(version: Version) -> None:
  """Makes the folders that the tests open, in the version's working directory."""
  make_data(version.folder)
  version.run('--mode=prepare', '--config=configs/store.py', '--output=store')
  for name in ('electra', 'modern'):
    command = (f'--config=configs/{name}.py', f'--workdir={name}')
    # `modern` is stopped in its second phase.
    version.stopped(name, 'metrics.jsonl', {'electra': 9, 'modern': 15}[name], *command)
    version.run('--mode=evaluate', f'--workdir={name}')
    version.run('--mode=export', f'--workdir={name}', f'--output=exports/{name}')
  version.run('--mode=finetune', '--config=configs/cola.py', '--workdir=finetuned')
  version.run('--mode=export', '--workdir=finetuned', '--output=exports/finetuned')
  command = ('--mode=finetune', '--config=configs/ner.py', '--workdir=finetuned_stopped')
  version.run(*command, '--config.num_trials=1')
  version.stopped('finetuned_stopped', 'ner/trial-2/metrics.jsonl', 6, *command)
  shutil.rmtree(version.folder / 'cache')


def record(version: Version, expected: pathlib.Path) -> None:
  """Writes what the version computes from the folders that `make` made. Changes them.

  Args:
    version: Its working directory is a copy of what `make` made.
    expected: Folder to write to:
      texts.json, NAME.npz, NAME.tokens.json: the hidden states and probabilities of texts.
      finetuned.jsonl, finetuned_stopped.jsonl: predictions for the dev set.
      NAME/: metrics.jsonl and final parameters of the pretraining runs after they were resumed,
        of `continued`, a new run; the results of fine-tuned runs after they were resumed, the
        complete one with a third trial.
  """
  write(expected / 'texts.json', json.dumps(TEXTS) + '\n')
  version.python('-c', OUTPUTS, str(expected))
  for name, file in (('finetuned', 'glue/CoLA/dev.tsv'), ('finetuned_stopped', 'ner/dev.conll')):
    flags = (f'--workdir={name}', f'--input={file}', f'--output={expected / name}.jsonl')
    version.run('--mode=predict', *flags)
  version.run('--config=configs/continued.py', '--workdir=continued')
  # Fine-tuning first: resuming `electra` and `modern` removes the checkpoints that it starts from.
  command = ('--mode=finetune', '--config=configs/cola.py', '--workdir=finetuned')
  version.run(*command, '--config.num_trials=3')
  version.run('--mode=finetune', '--config=configs/ner.py', '--workdir=finetuned_stopped')
  for name in ('electra', 'modern'):
    version.run(f'--config=configs/{name}.py', f'--workdir={name}')
  for name in ('electra', 'modern', 'continued'):
    (expected / name).mkdir()
    shutil.copy(version.folder / name / 'metrics.jsonl', expected / name)
    version.python('-c', PARAMETERS, name, str(expected / name / 'parameters.npz'))
  for name in ('finetuned', 'finetuned_stopped'):
    (expected / name).mkdir()
    shutil.copy(version.folder / name / 'results.json', expected / name)


def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
  """An entry of the archive without its owner."""
  entry.uid = entry.gid = 0
  entry.uname = entry.gname = ''
  return entry


def main() -> None:
  """Makes the archive from a checkout of version 0.1.0."""
  parser = argparse.ArgumentParser(description='Makes tests/versions/0.1.0.tar.xz.')
  parser.add_argument('checkout', type=pathlib.Path, help='a checkout of 641b850')
  checkout = parser.parse_args().checkout.resolve()
  git = ['git', '-C', str(checkout)]
  commit = subprocess.check_output([*git, 'rev-parse', 'HEAD'], text=True)
  changed = subprocess.check_output([*git, 'status', '--porcelain'], text=True)
  if not commit.startswith(COMMIT) or changed:
    raise SystemExit(f'{checkout} is {commit[:7]}; expected an unchanged checkout of {COMMIT}.')
  with tempfile.TemporaryDirectory() as temporary:
    made, changing, programs = (
      pathlib.Path(temporary, name) for name in ('made', 'changing', 'programs')
    )
    shutil.copytree(
      HERE / '0.1.0' / 'configs', made / 'configs', ignore=shutil.ignore_patterns('__py*')
    )
    make(Version(checkout, made, programs))
    shutil.copytree(made, changing)
    record(Version(checkout, changing, programs), made / 'expected')
    shutil.rmtree(made / 'configs')
    with tarfile.open(HERE / '0.1.0.tar.xz', 'w:xz') as archive:
      for path in sorted(made.iterdir()):
        archive.add(path, path.name, filter=anonymous)


if __name__ == '__main__':
  main()
