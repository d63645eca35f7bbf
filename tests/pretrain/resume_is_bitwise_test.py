"""A run that is killed at any moment, also during a save, resumes bitwise equal."""

import pathlib
import random
import shutil
import signal
import time

import micro_run
import pytest

STEPS, SAVE_EVERY = 30, 5  # tests/configs/micro.py


def kill(process):
  process.kill()
  process.wait()
  assert process.returncode == -signal.SIGKILL


def unfinished_saves(workdir) -> set[str]:
  """Names of the folders of incomplete saves."""
  folder = pathlib.Path(workdir) / 'checkpoints'
  return (
    {path.name for path in folder.iterdir() if not path.name.isdigit()}
    if folder.is_dir()
    else set()
  )


def same(a, b, step=STEPS):
  """Whether two runs have bitwise equal last checkpoints and equal metrics."""
  return not micro_run.differing(
    micro_run.checkpoint(a, step), micro_run.checkpoint(b, step)
  ) and micro_run.figures(a) == micro_run.figures(b)


# One kill during a save that is not the last one, and one during the last save.
FEW = (('save', 10), ('save', STEPS))


def many():
  """Two kills before the first step, three between saves, five during saves with the last."""
  rng = random.Random(20)
  moments = [('step', step) for step in rng.sample(range(3, STEPS - 3, 3), 3)]
  moments += [('save', step) for step in rng.sample(range(SAVE_EVERY, STEPS, SAVE_EVERY), 4)]
  moments.sort(key=lambda moment: moment[1])
  return (*[('start', 0)] * 2, *moments, ('save', STEPS))


@pytest.mark.parametrize(
  'moments, delay',
  [
    pytest.param(FEW[:1], False, id='one'),
    pytest.param((('start', 0), *FEW), False, id='three', marks=pytest.mark.long),
    pytest.param(many(), True, id='ten', marks=pytest.mark.faults),
  ],
)
def test_a_killed_and_resumed_run_is_bitwise_equal(moments, delay, tmp_path):
  whole, _ = micro_run.finished()
  killed = tmp_path / 'killed'
  rng = random.Random(21)
  cut_short = 0
  for kind, step in moments:
    left_over = unfinished_saves(killed)
    process = micro_run.start(*micro_run.arguments(killed))
    if kind == 'start':
      micro_run.wait_for(lambda: (killed / 'config.json').exists(), process)
      time.sleep(rng.uniform(0, 4 if delay else 1))
    elif kind == 'step':
      micro_run.wait_for(lambda step=step: micro_run.last_step(killed) >= step, process)
      time.sleep(rng.uniform(0, 0.03))
    else:
      micro_run.wait_for(
        lambda step=step, old=left_over: any(
          int(name.partition('.')[0]) >= step for name in unfinished_saves(killed) - old
        ),
        process,
      )
      if delay:
        time.sleep(rng.choice([0, 0, rng.uniform(0, 0.03)]))
    kill(process)
    cut_short += kind == 'save' and bool(unfinished_saves(killed) - left_over)
  out, _ = micro_run.run(*micro_run.arguments(killed))
  assert cut_short >= (2 if delay else 1), 'too few kills during a save'
  assert 'restored     step' in out
  assert not unfinished_saves(killed)
  assert (
    micro_run.differing(micro_run.checkpoint(whole, STEPS), micro_run.checkpoint(killed, STEPS))
    == []
  )
  assert micro_run.figures(killed) == micro_run.figures(whole)


@pytest.mark.parametrize('every', [2, pytest.param(1, marks=pytest.mark.long)])
def test_a_checkpoint_holds_the_state_of_its_step_though_training_continues_while_it_is_written(
  every, tmp_path
):
  # One run saves more often: the next steps reuse its buffers while the disk is busy.
  whole, often = micro_run.finished()[0], tmp_path / 'often'
  micro_run.run(*micro_run.arguments(often, '--config.keep=100', f'--config.save_every={every}'))
  assert micro_run.checkpoint_steps(often) == list(range(every, STEPS + 1, every))
  assert micro_run.checkpoint_steps(whole) == list(range(SAVE_EVERY, STEPS + 1, SAVE_EVERY))
  for step in range(SAVE_EVERY * every, STEPS + 1, SAVE_EVERY * every):
    frequent, rare = (micro_run.checkpoint(folder, step) for folder in (often, whole))
    assert micro_run.differing(frequent, rare) == []
  for step in micro_run.checkpoint_steps(often):
    assert micro_run.checkpoint(often, step, ['counters'])['counters/step'] == step
  assert micro_run.figures(often) == micro_run.figures(whole)


@pytest.mark.long
def test_another_seed_gives_another_run(tmp_path):
  whole, _ = micro_run.finished()
  micro_run.run(*micro_run.arguments(tmp_path / 'other', '--config.seed=1'))
  differing = micro_run.differing(
    micro_run.checkpoint(whole, STEPS), micro_run.checkpoint(tmp_path / 'other', STEPS)
  )
  assert any(name.startswith('params/') for name in differing) and any(
    name.startswith('opt_state/') for name in differing
  )
  assert micro_run.figures(tmp_path / 'other') != micro_run.figures(whole)


def test_the_comparison_detects_a_lost_line_of_metrics_or_one_changed_bit(tmp_path):
  whole, _ = micro_run.finished()
  copy = tmp_path / 'copy'
  shutil.copytree(whole, copy)
  assert same(whole, copy)
  arrays = micro_run.checkpoint(whole, STEPS)
  nudged = {name: array.copy() for name, array in arrays.items()}
  name = next(name for name in nudged if name.startswith('opt_state/') and nudged[name].ndim)
  nudged[name].view('uint8').reshape(-1)[0] ^= 1
  assert micro_run.differing(arrays, nudged) == [name]
  lines = (copy / 'metrics.jsonl').read_text().splitlines(keepends=True)
  (copy / 'metrics.jsonl').write_text(''.join(lines[:-1]))
  assert not same(whole, copy)


def test_an_incomplete_line_of_metrics_is_written_again(tmp_path):
  whole, _ = micro_run.finished()
  copy = tmp_path / 'copy'
  shutil.copytree(whole, copy)
  shutil.rmtree(copy / 'checkpoints' / '30')
  text = (copy / 'metrics.jsonl').read_text()
  (copy / 'metrics.jsonl').write_text(text[: text.rindex('{"kind": "train", "step": 30') + 40])
  out, _ = micro_run.run(*micro_run.arguments(copy, '--config.keep=100'))
  assert 'restored     step 25' in out
  assert same(whole, copy)
