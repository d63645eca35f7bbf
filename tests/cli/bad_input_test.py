"""A user's mistake ends with one sentence that names it and status 1, and loses no file."""

import json
import pathlib
import shutil
import sys

import micro_run
import pytest

from electra_jax import main
from electra_jax.pretrain import build, pretrain_step, run_start
from electra_jax.training.run_folder import write_json

MICRO = f'--config={micro_run.CONFIG}'
CONFIG_FILE = """from electra_jax.config import *
def get_config(arguments=""):
  c = default_config()
  {line}
  return c
"""


class LongWork(BaseException):
  """Long work started although the mistake could have been reported before."""


def refuse(*args, **kwargs):
  raise LongWork


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
  monkeypatch.chdir(micro_run.ROOT)
  monkeypatch.setattr(pretrain_step, 'jit_train_step', refuse)


@pytest.fixture
def sentence(capsys):
  """A function that runs a command line in this process and returns its error message.

  It checks that the command ends with status 1 and that the message is one sentence.
  """

  def run(*argv):
    capsys.readouterr()
    assert main.main(['main', *argv]) == 1
    err = capsys.readouterr().err
    assert err.startswith('electra_jax: ') and err.count('\n') == 1 and err.endswith('\n')
    assert 'Traceback' not in err and len(err) < 500
    return err.removeprefix('electra_jax: ').rstrip('\n')

  return run


@pytest.fixture
def no_data(monkeypatch):
  """Fails the test where the corpus is read."""
  monkeypatch.setattr(run_start, 'prepare_data', refuse)


def contents(folder):
  """Path -> content of all files of a run, except its status, which changes with each start."""
  files = [path for path in pathlib.Path(folder).rglob('*') if path.is_file()]
  return {path: path.read_bytes() for path in files if path.name != 'status.json'}


@pytest.mark.parametrize(
  'argv, named',
  [
    ([MICRO, '--config.stepz=3'], "no field 'stepz'; did you mean 'steps'"),
    ([MICRO, '--config.model.hiden_size=3'], "no field 'hiden_size'; did you mean 'hidden_size'"),
    ([MICRO, '--config.modell.hidden_size=3'], "no field 'modell'; did you mean 'model'"),
    ([MICRO, '--config.qqqq=3'], "no field 'qqqq'"),
    ([MICRO, '--config.steps=abc'], "--config.steps=abc: not an integer: 'abc'"),
    ([MICRO, '--config.steps=1.5'], "--config.steps=1.5: not an integer: '1.5'"),
    ([MICRO, '--config.optimizer.learning_rate=fast'], "not a number: 'fast'"),
    ([MICRO, '--config.skip_nonfinite=perhaps'], 'neither true nor false'),
    ([MICRO, '--config.profile_steps=3'], 'config.profile_steps is (3,)'),
    ([MICRO, '--config.model=3'], '--config.model=3'),
    ([MICRO, '--config.steps'], '--config.steps'),
    ([f'{MICRO}:sq=3'], "no argument 'sq=3'; did you mean seq=...?"),
    ([f'{MICRO}:seq'], "no argument 'seq'"),
    ([f'{MICRO}:seq=x'], "seq='x' is not an integer"),
    ([f'{MICRO}:batch=2.5'], "batch='2.5' is not an integer"),
    ([f'{MICRO}:lr=x'], "lr='x' is not a number"),
    (['--config=configs/nosuch.py'], "No such file or directory: 'configs/nosuch.py'"),
    (['--config=configs'], "Is a directory: 'configs'"),
    (['--config='], 'empty'),
    (['--config'], '--config'),
    (['--config.steps=3'], 'config.steps'),
    ([], 'no --config was given'),
    ([MICRO, '--wrkdir=x'], "'wrkdir'. Did you mean: workdir"),
    ([MICRO, '--mode=trian'], '--mode=trian'),
    ([MICRO, 'steps=3'], "'steps=3' is not a flag"),
    (['trian', MICRO], "'trian' is not a mode; expected one of train, prepare, "),
    (['plan', MICRO, '--mode=train'], "the mode is given as 'plan' and with --mode"),
    (['evaluate'], '--mode=evaluate requires --workdir'),
    (['export', '--workdir=x'], '--mode=export requires --output'),
    (['blimp', '--workdir=x'], '--mode=blimp requires --pairs'),
    (['timeline', '--config=configs/finetune/cola.py'], '--mode=timeline requires --workdir'),
    (['timeline', MICRO, '--workdir=x'], '--mode=timeline takes a fine-tuning config, such as'),
    (['--plugins=nosuch.py', MICRO], 'nosuch.py is not a Python file'),
    ([MICRO, '--rows=5'], '--rows applies to --mode=evaluate'),
    (['--mode=evaluate', '--rows=none', '--workdir=x'], '--rows=none: not an integer'),
    (['--mode=evaluate', '--rows=0', '--workdir=x'], '--rows=0'),
    (['--mode=evaluate'], '--mode=evaluate requires --workdir'),
    (['--mode=report'], '--mode=report requires --workdir'),
    (['--mode=inspect'], '--mode=inspect requires --workdir'),
    (['--mode=evaluate', '--first=3', '--workdir=x'], '--first applies to --mode=inspect'),
    (['--mode=inspect', '--first=-1', '--workdir=x'], '--first=-1'),
    (['--mode=prepare'], 'no --config was given'),
    (['--mode=prepare', MICRO, '--workdir=x'], '--mode=prepare makes no run'),
    (['--mode=plan', MICRO, '--workdir=x', '--topology=v5e-4'], '--mode=plan makes no run'),
    (['--mode=plan', MICRO, '--topology=v5e-4', '--hours=3'], '--topology and --hours exclude'),
    (['--mode=plan', MICRO, '--device=abacus'], "--device is 'abacus'; expected one of TPU v3"),
    (['--mode=plan', MICRO, '--device=TPU v4', '--utilization=2'], '--utilization is 2; expected'),
    (['--mode=plan', MICRO, '--device=TPU v4', '--hours=0'], '--hours is 0; expected'),
    (['--mode=plan', MICRO, '--price=-1'], '--price is -1; expected'),
    (['--mode=plan', '--topology=v5e-4'], 'no --config was given'),
    (['--mode=plan', MICRO, '--topology=v5e-17'], "--topology is 'v5e-17', which does not exist"),
    (['--mode=plan', MICRO, '--topology=h100-8'], "--topology is 'h100-8'; expected a TPU slice"),
    ([MICRO, '--topology=v5e-4'], '--topology applies to --mode=plan'),
    (
      ['--mode=inspect', '--workdir=x', '--processes=2'],
      '--processes applies to --mode=train, --mode=evaluate, --mode=finetune and --mode=timeline',
    ),
    (
      ['--mode=prepare', MICRO, '--config.data.store=x'],
      'config.data.store names a corpus that is prepared already',
    ),
    (['--mode=prepare', MICRO, '--config.data.workers=-1'], 'config.data.workers is -1'),
    ([MICRO, '--output=x'], '--output applies to --mode=prepare'),
    ([MICRO, '--beam='], '--beam applies to --mode=prepare'),
    ([MICRO, '--config.data.lowercase=maybe'], "config.data.lowercase is 'maybe'"),
    (
      [
        MICRO,
        '--config.data.row_format=segment_pair',
        '--config.model.family=electra',
        '--config.model.type_vocab_size=1',
      ],
      'requires two token types',
    ),
    (
      ['--mode=evaluate', MICRO, '--config.seed=3'],
      "uses the config in the run's folder; remove --config.seed",
    ),
    (
      [MICRO, '--config.micro_batches=3'],
      'config.batch_size 8 does not divide into 3 micro-batches',
    ),
    ([MICRO, '--config.batch_size=12'], 'config.batch_size 12 does not divide over 8 devices'),
    (
      [MICRO, '--config.micro_batches=2'],
      'config.micro_batches 2 does not divide the 1 rows of a device',
    ),
    (
      [MICRO, '--config.optimizer.warmup_steps=30'],
      'config.optimizer.warmup_steps 30 is not less than config.steps 30',
    ),
    ([MICRO, '--config.model.num_heads=5'], 'hidden_size 32 does not divide into 5 heads'),
    ([MICRO, '--config.model.family=gpt2'], "family is 'gpt2'"),
  ],
  ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_wrong_flag_or_field_is_reported(argv, named, sentence, no_data, tmp_path):
  has_default_mode = argv[:1] and argv[0].startswith('-') and '--mode' not in str(argv)
  if has_default_mode and 'workdir' not in str(argv):
    argv = [f'--workdir={tmp_path / "run"}', *argv]
  assert named in sentence(*argv)


@pytest.mark.parametrize(
  'source, named',
  [
    ('def get_config(arguments=""):\n  return (\n', 'never closed'),
    ('def get_config(arguments=""):\n  return 1 / 0\n', 'line 2: ZeroDivisionError'),
    ('x = 1\n', "no attribute 'get_config'"),
    ('def get_config(arguments=""):\n  pass\n', 'returns no ConfigDict'),
    ('import nosuchmodule\n', "No module named 'nosuchmodule'"),
    (CONFIG_FILE.format(line='c.steps = "many"'), 'line 4: TypeError'),
    (
      CONFIG_FILE.format(line='c.stepz = 3'),
      'config.stepz is not a field; did you mean config.steps?',
    ),
    (CONFIG_FILE.format(line='del c.keep'), "lacks the field 'keep'"),
    (CONFIG_FILE.format(line='raise UserError("not here.")'), 'not here.'),
  ],
)
def test_an_error_in_a_config_file_is_reported(
  source, named, sentence, no_data, tmp_path, monkeypatch
):
  path = tmp_path / 'mine.py'
  path.write_text(source)
  monkeypatch.delitem(sys.modules, 'config_config', raising=False)  # as in a new process
  assert named in sentence(f'--config={path}', f'--workdir={tmp_path / "run"}')


@pytest.mark.parametrize(
  'content, more, named',
  [
    (None, [], "text.txt' does not exist"),
    (b'', [], 'the corpus is empty'),
    (b'\n \n\n', [], 'the corpus is empty'),
    (b'fine\n\nn\xe3o\n', [], 'is not UTF-8 (byte 0xe3 on line 3'),
    (b'one document of a few words\n', [], 'too small to train a tokenizer on'),
    (
      'whole',
      ['--config.data.vocab_size=5000'],
      'vocab_size is 5000, more than this corpus supports',
    ),
    ('whole', ['--config.data.vocab_size=100'], 'vocab_size is 100'),
    ('whole', ['--config.data.document_format=page'], "document_format is 'page'"),
    ('whole', ['--config.data.heldout_fraction=1'], 'heldout_fraction is 1'),
    ('whole', ['--config.batch_size=800'], 'has 365 rows and config.batch_size is 800'),
    ('whole', ['--config.data.tokenizer=nowhere'], "'nowhere'"),
    ('whole', ['--config.data.row_format=rows'], "row_format is 'rows'"),
    ('whole', ['--config.data.near_duplicates=1.5'], 'near_duplicates is 1.5'),
    ('whole', ['--config.data.source=sample;wait=3'], "'wait=3'"),
    ('whole', ['--config.data.store=nowhere'], "no prepared corpus at 'nowhere'"),
  ],
)
def test_a_corpus_that_cannot_be_used_is_reported(
  content, more, named, sentence, tmp_path, monkeypatch
):
  text = tmp_path / 'text.txt'
  if content is not None:
    text.write_bytes(micro_run.corpus().read_bytes() if content == 'whole' else content)
  argv = [
    argument
    for argument in micro_run.arguments(tmp_path / 'run')
    if 'data.source' not in argument and 'data.cache' not in argument
  ]
  assert named in sentence(
    *argv, f'--config.data.source={text}', f'--config.data.cache={tmp_path / "cache"}', *more
  )
  # The failed start binds neither the folder nor the cache: after the fix the command gets further,
  # to the model, which is built from the data.
  monkeypatch.setattr(build, 'program', refuse)
  with pytest.raises(LongWork):
    main.main(['main', *micro_run.arguments(tmp_path / 'run')])


@pytest.mark.parametrize('workdir', ['/proc/electra_jax/run', '{file}/run', '{file}'])
def test_a_workdir_that_cannot_be_written_is_reported(workdir, sentence, no_data, tmp_path):
  (tmp_path / 'file').write_text('mine')
  assert 'cannot be written' in sentence(
    MICRO, f'--workdir={workdir.format(file=tmp_path / "file")}'
  )
  assert (tmp_path / 'file').read_text() == 'mine'


def test_a_cache_that_cannot_be_written_is_reported(sentence, tmp_path):
  (tmp_path / 'file').write_text('mine')
  argv = [
    argument for argument in micro_run.arguments(tmp_path / 'run') if 'data.cache' not in argument
  ]
  assert 'cannot be written' in sentence(*argv, f'--config.data.cache={tmp_path / "file"}')


@pytest.fixture(scope='module')
def copied(tmp_path_factory):
  """A copy of the finished run; no test may change it."""
  folder = tmp_path_factory.mktemp('run') / 'copy'
  shutil.copytree(micro_run.finished()[0], folder)
  # Another worker may have made the run, with another folder of compiled programs.
  config = json.loads((folder / 'config.json').read_text())
  write_json(folder / 'config.json', config | {'compilation_cache': str(micro_run.programs())})
  before = contents(folder)
  yield folder
  assert contents(folder) == before


def test_the_workdir_of_another_config_is_refused(sentence, no_data, copied):
  argv = micro_run.arguments(copied)
  message = sentence(*argv, '--config.optimizer.learning_rate=0.1', '--config.seed=3')
  assert (
    'holds a run of another config (optimizer.learning_rate: 0.001 -> 0.1; seed: 0 -> 3)' in message
  )
  assert 'another --workdir' in message


def test_a_corpus_that_has_changed_is_refused(sentence, copied, tmp_path, monkeypatch):
  original = micro_run.corpus().read_bytes()
  changed = tmp_path / 'changed.txt'
  changed.write_bytes(original.replace(b'ba', b'bo'))
  real = run_start.prepare_data

  def of_the_changed(config, tokenizer=None):
    return real(config.replace({'data.source': str(changed)}))

  monkeypatch.setattr(run_start, 'prepare_data', of_the_changed)
  assert 'is not the one that' in sentence(*micro_run.arguments(copied, '--config.keep=100'))
  assert 'has changed since' in sentence('--mode=evaluate', f'--workdir={copied}')


@pytest.mark.parametrize('mode', ['evaluate', 'report'])
def test_a_folder_without_a_run_is_refused(mode, sentence, tmp_path):
  for workdir in (tmp_path, tmp_path / 'nosuch'):
    assert f'{workdir} is not a run' in sentence(f'--mode={mode}', f'--workdir={workdir}')


def test_a_missing_checkpoint_is_reported(sentence, copied):
  for step in ('7', 'first'):
    message = sentence('--mode=evaluate', f'--workdir={copied}', f'--step={step}')
    assert f'has no checkpoint of step {step}; it has those of 5, 10,' in message


def test_a_run_without_a_checkpoint_is_refused(sentence, copied, tmp_path):
  shutil.copytree(copied, tmp_path / 'run', ignore=shutil.ignore_patterns('checkpoints'))
  assert 'holds no checkpoint' in sentence('--mode=evaluate', f'--workdir={tmp_path / "run"}')


@pytest.mark.parametrize(
  'file, content, named',
  [
    ('config.json', '{"seed": ', 'config.json is damaged'),
    ('config.json', '[1, 2]', 'config.json is damaged'),
    ('config.json', '{"model": 3}', 'config.json is not the config of a run'),
    ('config.json', '{"seed": "many"}', 'config.json is not the config of a run'),
    ('tokenizer/tokenizer.model', 'x', "tokenizer.model' differs from its checksum"),
    ('tokenizer/tokenizer.model', None, "tokenizer.model' is missing"),
    ('tokenizer/SHA256SUMS', 'x', "SHA256SUMS' is damaged"),
  ],
)
def test_damaged_files_of_a_run_are_reported(file, content, named, sentence, copied, tmp_path):
  shutil.copytree(copied, tmp_path / 'run')
  if content is None:
    (tmp_path / 'run' / file).unlink()
  else:
    (tmp_path / 'run' / file).write_text(content)
  before = contents(tmp_path / 'run')
  assert named in sentence('--mode=evaluate', f'--workdir={tmp_path / "run"}')
  assert contents(tmp_path / 'run') == before


def test_a_damaged_checkpoint_is_reported(sentence, copied, tmp_path):
  shutil.copytree(copied, tmp_path / 'run')
  for path in (tmp_path / 'run' / 'checkpoints' / '30' / 'params').rglob('*'):
    if path.is_file():
      path.write_bytes(path.read_bytes()[:5])
  assert 'checkpoints/30 is damaged' in sentence('--mode=evaluate', f'--workdir={tmp_path / "run"}')


def test_a_damaged_config_is_not_overwritten(sentence, copied, tmp_path, no_data):
  shutil.copytree(copied, tmp_path / 'run')
  (tmp_path / 'run' / 'config.json').write_text('{')
  assert 'config.json is damaged' in sentence(*micro_run.arguments(tmp_path / 'run'))
  assert (tmp_path / 'run' / 'config.json').read_text() == '{'


@pytest.mark.parametrize(
  'argv, devices, named',
  [
    (['--config.stepz=3'], 1, "no field 'stepz'"),
    (['--config.batch_size=12'], 8, 'does not divide over 8 devices'),
    (['--config.data.source=nosuch.txt'], 1, "'nosuch.txt' does not exist"),
  ],
)
def test_a_mistake_ends_the_program_with_one_sentence(argv, devices, named, tmp_path):
  out, err = micro_run.run(*micro_run.arguments(tmp_path / 'run', *argv), status=1, devices=devices)
  assert err.startswith('electra_jax: ') and err.count('\n') == 1 and named in err
  assert 'Traceback' not in out + err and 'compiling' not in out


@pytest.mark.parametrize(
  'argv, warning',
  [
    (['--help'], ''),
    (
      ['--mode=prepare', MICRO, '--config.data.source={corpus}', '--config.data.cache={cache}'],
      'electra_jax: the output cannot be printed (Broken pipe); the program continues without.\n',
    ),
  ],
)
def test_a_closed_output_is_not_an_error(argv, warning, tmp_path):
  # As in `... | head -1`.
  argv = [argument.format(corpus=micro_run.corpus(), cache=tmp_path) for argument in argv]
  process = micro_run.start(*argv)
  process.stdout.close()
  assert process.stderr.read() == warning
  process.wait(timeout=300)


def test_a_question_ends_its_sentence(sentence, no_data):
  assert "did you mean 'steps'? --help lists the flags" in sentence(MICRO, '--config.stepz=3')
