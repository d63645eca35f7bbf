"""Inspected rows are those of evaluation, with both towers' predictions; text is harmless."""

import collections
import functools
import io
import os
import re
import types

import jax
import micro_run
import numpy as np
import pytest
from conftest import CLS, MASK, PAD, SEP, packed_rows, random_params, tiny_electra
from readable_test import tokenizer

import electra_jax
from electra_jax.data.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from electra_jax.data.tokenizers.wordpiece_tokenizer import WordPieceTokenizer
from electra_jax.errors import UserError
from electra_jax.model.randomness import row_keys
from electra_jax.pretrain import metrics, pretrain_step, readable
from electra_jax.pretrain.evaluation import EVAL_SEED, heldout, heldout_sums
from electra_jax.pretrain.inspect import inspect, read_rows
from electra_jax.pretrain.objectives.electra import OBJECTIVE
from electra_jax.pretrain.objectives.parts import mask_rows
from electra_jax.pretrain.objectives.settings import Settings

SETTINGS = Settings(max_predictions=5)
ANSI = re.compile('\x1b\\[[0-9;]*m')


@functools.cache
def model_and_params(family='modern'):
  model = tiny_electra(family)
  return model, random_params(model)


class Rows:
  """A store of random rows."""

  def __init__(self, rows=20):
    self.rows, self._ids = rows, packed_rows(rows, 32, 60, seed=1)

  def read(self, indices):
    return self._ids[indices]


def made_up_run(tokens=None, rows=20):
  model, params = model_and_params()
  return types.SimpleNamespace(
    config=types.SimpleNamespace(name='made-up'),
    step=3,
    heldout=Rows(rows),
    tokenizer=tokens or tokenizer(),
    model=model,
    params=params,
    settings=SETTINGS,
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def read(settings, model, params, token_ids, numbers):
  return read_rows(settings, model, params, token_ids, row_keys(EVAL_SEED, 0, numbers))


#### What is read ####


@pytest.mark.parametrize('family', ['modern', pytest.param('electra', marks=pytest.mark.long)])
def test_probabilities_equal_those_of_both_towers(family):
  model, params = model_and_params(family)
  token_ids, length = packed_rows(4, 32, 60, seed=2), 32
  r = jax.device_get(read(SETTINGS, model, params, token_ids, np.arange(4)))
  # Only the inputs; the masks are others.
  masked = jax.jit(lambda ids: mask_rows(SETTINGS, ids, row_keys(0, 0, np.arange(4))))
  inputs = masked(token_ids)['inputs']
  at_all = np.broadcast_to(np.arange(length), (4, length))
  generator = inputs._replace(token_ids=np.where(r.hidden, MASK, token_ids))
  apply = jax.jit(functools.partial(model.apply, {'params': params}), static_argnames='method')
  logits = np.float64(apply(generator, at_all, method='generator_logits'))
  softmax = np.exp(logits - logits.max(-1, keepdims=True))
  softmax /= softmax.sum(-1, keepdims=True)

  def of(ids):
    return np.where(r.masked, np.take_along_axis(softmax, ids[..., None], -1)[..., 0], 0)

  np.testing.assert_allclose(r.p_original, of(token_ids), rtol=1e-4, atol=1e-7)
  np.testing.assert_allclose(r.p_sample, of(r.corrupted), rtol=1e-4, atol=1e-7)
  verdicts = np.float64(
    apply(inputs._replace(token_ids=r.corrupted), method='discriminator_logits')
  )
  real = token_ids != PAD
  np.testing.assert_allclose(
    r.p_replaced, np.where(real, 1 / (1 + np.exp(-verdicts)), 0), rtol=1e-4, atol=1e-6
  )
  np.testing.assert_array_equal(r.called, real & (r.p_replaced >= 0.5))
  # The compared values differ.
  assert 0 < r.called.sum() < real.sum() and np.abs(of(token_ids) - of(r.corrupted)).max() > 0.01


def test_masked_hidden_and_replaced_positions_are_consistent():
  model, params = model_and_params()
  token_ids = packed_rows(16, 32, 60, seed=3)
  # As many rows as below, so that it is compiled once.
  r = jax.device_get(read(SETTINGS, model, params, token_ids, np.arange(16)))
  assert not (r.masked & np.isin(token_ids, [PAD, CLS, SEP, MASK])).any()
  # 15% of the masked positions are not hidden.
  assert 0 < (r.masked & ~r.hidden).sum() < r.hidden.sum()
  assert not (r.hidden & ~r.masked).any()
  np.testing.assert_array_equal(r.token_ids, token_ids)
  np.testing.assert_array_equal(r.replaced, r.corrupted != token_ids)
  assert not (r.replaced & ~r.masked).any() and not (r.called & (token_ids == PAD)).any()


@pytest.mark.parametrize(
  'settings',
  [{}, {'disallow_correct': True, 'mask_rate': 0.5}, {'google': True, 'temperature': 0.0}],
  ids=str,
)
def test_counts_equal_those_of_evaluation(settings):
  settings = Settings(**{'max_predictions': 5} | settings)
  model, params = model_and_params()
  token_ids, numbers = packed_rows(16, 32, 60, seed=4), np.arange(7, 23)
  r = jax.device_get(read(settings, model, params, token_ids, numbers))
  eval_step = jax.jit(pretrain_step.make_eval_step(model, OBJECTIVE, settings, seed=EVAL_SEED))
  sums = jax.device_get(eval_step(params, {'token_ids': token_ids, 'rows': numbers}))
  if not settings.google:  # evaluation counts a position as often as it was drawn
    assert (r.masked.sum(), (r.masked & ~r.replaced).sum()) == (
      sums['masked'],
      sums['sampled_correct'],
    )
  middle, real = metrics.NONLINEAR.number // 2, token_ids != PAD
  for label in (False, True):
    counted = sums['scores'][int(label)]
    assert (real & (r.replaced == label)).sum() == counted.sum()
    assert (r.called & (r.replaced == label)).sum() == counted[middle:].sum()
  elsewhere = jax.device_get(read(settings, model, params, token_ids, numbers + 1))
  assert (elsewhere.masked != r.masked).any()


#### What is shown ####


def test_colors_do_not_change_the_text():
  run = made_up_run()
  plain, colored = inspect(run, rows=3, color=False), inspect(run, rows=3, color=True)
  assert '\x1b' not in plain and ANSI.sub('', colored) == plain and ANSI.search(colored)
  for kind in ('caught', 'missed', 'original', 'was'):
    assert f'\x1b[{readable.STYLES[kind]}m' in colored
  legend = colored.split('row 0')[0]
  assert f'\x1b[{readable.STYLES["caught"]}mput ✓83%\x1b[0m' in legend


HOSTILE = [
  '▁\x1b]0;owned\x07',
  '\x1b[31mred',
  '▁a\u202eb',
  '▁\r\n',
  '\x9b2J',
  '▁\u2028x',
  '\ud800',
  '▁\x00',
  '▁\u200b',
]
HARMLESS = ['▁é', '▁日本', '▁👩\u200d🚀']


@pytest.mark.parametrize('kind', [SentencePieceTokenizer, WordPieceTokenizer])
@pytest.mark.parametrize('color', [False, True])
def test_control_characters_of_the_text_are_escaped(kind, color):
  run = made_up_run(tokenizer(kind, 5 * (HOSTILE + HARMLESS)))
  text = inspect(run, rows=6, color=color)
  ours = {f'\x1b[{style}m' for style in readable.STYLES.values()} | {'\x1b[0m'}
  assert set(ANSI.findall(text)) <= (ours if color else set())
  rest = ANSI.sub('', text)
  assert not re.search(
    '[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u2028\u2029\u202a-\u202e\ud800-\udfff]', rest
  )
  for token in HOSTILE + HARMLESS:
    assert (
      token.removeprefix('▁').encode('unicode_escape').decode() in rest
      or token.removeprefix('▁') in rest
    )
    assert (token in rest) == (token in HARMLESS)


def test_every_line_fits_the_terminal(monkeypatch):
  run = made_up_run(tokenizer(tokens=[f'▁{"日本" * (i % 3)}w{i}' for i in range(55)]))
  for columns in (80, 100, 300):
    monkeypatch.setenv('COLUMNS', str(columns))
    lines = inspect(run, rows=4, color=False).splitlines()
    widths = [readable.cells(line) for line in lines]
    assert max(widths) <= min(columns, 110), max(zip(widths, lines, strict=True))
    assert max(widths) > min(columns, 110) - 15


#### Where it is printed ####


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.mark.parametrize(
  'out, environment, colored',
  [
    (Terminal, {}, True),
    (Terminal, {'NO_COLOR': '1'}, False),
    (Terminal, {'NO_COLOR': ''}, True),
    (Terminal, {'TERM': 'dumb'}, False),
    (io.StringIO, {}, False),
  ],
)
def test_colors_are_used_on_terminals_that_support_them(monkeypatch, out, environment, colored):
  for name, value in ({'NO_COLOR': None, 'TERM': 'xterm'} | environment).items():
    monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
  out = out()
  monkeypatch.setattr('sys.stdout', out)
  text = inspect(made_up_run(), rows=1)
  assert out.getvalue() == text + '\n'
  assert bool(ANSI.search(text)) == colored


def test_a_terminal_with_ascii_encoding_gets_ascii(monkeypatch):
  raw = io.BytesIO()
  monkeypatch.setattr('sys.stdout', io.TextIOWrapper(raw, encoding='ascii'))
  inspect(made_up_run(tokenizer(tokens=['▁日本'] * 55)), rows=1)
  assert '\\u65e5\\u672c' in raw.getvalue().decode('ascii')


def test_a_closed_output_is_no_error(monkeypatch):
  reader, writer = os.pipe()
  os.close(reader)
  run = made_up_run()
  with os.fdopen(writer, 'w') as out:
    monkeypatch.setattr('sys.stdout', out)
    text = inspect(run, rows=20)
  assert 'row 0' not in text


#### Which rows ####


def test_the_text_of_a_row_does_not_depend_on_the_other_rows(capsys):
  run = made_up_run()

  def parts(text):
    return {m[1]: m[2] for m in re.finditer(r'(?ms)^  row (\d+)(.*?)(?=^  row |^  in all)', text)}

  every = parts(inspect(run, rows=20, color=False))  # more than one chunk
  assert capsys.readouterr().out.count('\n  row ') == 20
  assert list(every) == [str(i) for i in range(20)] and len(set(every.values())) == 20
  assert parts(inspect(run, rows=20, color=False)) == every
  some = parts(inspect(run, rows=2, first=17, color=False))
  assert list(some) == ['17', '18'] and all(every[number] == text for number, text in some.items())


def test_totals_add_up_and_name_the_flag_for_the_next_rows():
  run = made_up_run()
  text = inspect(run, rows=18, color=False)
  total = collections.Counter()
  for line in re.findall(r'(?m)^  row .*', text):
    total.update(
      {
        name: int(n)
        for n, name in re.findall(r'(\d+) (tokens|masked|replaced|caught|missed|false)', line)
      }
    )
  assert (
    f'18 rows, {total["tokens"]:,} tokens, {total["masked"]} masked, {total["replaced"]} replaced\n'
    in text
  )
  assert (
    f'{total["caught"]} caught and {total["missed"]} missed' in text
    and f'{total["false"]} false alarm' in text
  )
  assert total['caught'] and total['missed'] and total['false']
  assert total['replaced'] == total['caught'] + total['missed']
  assert '--first=18 begins with row 18' in text


def test_rows_that_do_not_exist_are_refused():
  run = made_up_run()
  for first in (20, 10**12, -1):
    with pytest.raises(UserError, match='20 held-out rows'):
      inspect(run, first=first)
  with pytest.raises(UserError, match='at least'):
    inspect(run, rows=0)
  text = inspect(run, rows=9, first=18, color=False)
  assert 'rows 18 to 19 of 20' in text and '--first=0 begins with row 0' in text


#### A run of the command line ####


def test_totals_of_a_run_equal_its_evaluation(capsys):
  run = electra_jax.load(micro_run.finished()[0])
  eval_step = jax.jit(
    pretrain_step.make_eval_step(run.model, OBJECTIVE, run.settings, seed=EVAL_SEED)
  )
  sums = heldout_sums(
    eval_step, run.params, heldout(run.heldout, run.settings), batch_size=8, mesh=run.mesh
  )
  capsys.readouterr()
  text = inspect(run, rows=run.heldout.rows)
  assert capsys.readouterr().out == text + '\n'
  scores, masked = sums['scores'].sum(0), sums['masked'].sum()
  read = f'{run.heldout.rows} rows, {scores.sum():,} tokens'
  assert f'{read}, {masked:,} masked, {scores[1].sum():,} replaced\n' in text
  middle = metrics.NONLINEAR.number // 2
  assert f'{scores[1, middle:].sum():,} caught and {scores[1, :middle].sum():,} missed' in text
  # With the originals in place of the marks, a row is the text that the tokenizer decodes.
  mark = re.compile(r'\{([^{}→=]+?)(?:=|→[^{}]*?)?(?: [✓✗!]<?\d+%)?\}')
  row = text.split('  row 0')[1].split('\n', 1)[1].split('    context')[0]
  assert mark.search(row)

  def squeezed(text):
    return ''.join(text.split()).replace('▁', '')

  assert squeezed(mark.sub(r'\1', row)) == squeezed(
    run.tokenizer.decode(run.heldout.read(np.array([0]))[0])
  )
