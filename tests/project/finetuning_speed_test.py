"""benchmarks/finetuning_speed.py: what both sides compute, the table, the page."""

import functools
import importlib
import json
import pathlib

import pytest
import transformers

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / 'benchmarks/results/finetuning_speed.json'


@pytest.fixture
def speed(monkeypatch):
  """The module of the benchmark."""
  monkeypatch.syspath_prepend(ROOT / 'benchmarks')
  return importlib.import_module('finetuning_speed')


def micro_peer(made, size, dropout=0.0):
  """The peer of a size, with few small layers."""
  config = made(size, dropout).config
  small = {'num_hidden_layers': 2, 'vocab_size': 400, 'intermediate_size': 64}
  for name, value in {**small, 'hidden_size': 32, 'embedding_size': 32}.items():
    if hasattr(config, name):
      setattr(config, name, value)
  if hasattr(config, 'layer_types'):
    config.layer_types = config.layer_types[:2]
  transformers.set_seed(0)
  return transformers.AutoModelForSequenceClassification.from_config(config)


@pytest.mark.long
@pytest.mark.usefixtures('on_one_device')
@pytest.mark.parametrize('size', ['mini', 'small'])
def test_both_sides_predict_and_train_alike(speed, tmp_path, monkeypatch, size):
  prediction = importlib.import_module('prediction')
  micro = functools.partial(micro_peer, prediction.peer_model)
  for module in (prediction, speed):
    monkeypatch.setattr(module, 'peer_model', micro)
  run, peer = speed.open_sides(size, tmp_path)
  texts = speed.texts_of(run.tokenizer, [5, 12, 30, 8])
  assert [len(ids) + 2 for ids in run.tokenizer.encode_arrays(texts)] == [5, 12, 30, 8]
  assert speed.largest_difference(run, peer, texts) < 1e-6
  ours, theirs = speed.both_steps(size, tmp_path, 12, 6, 0.0)
  losses = [(ours(1), theirs(1)) for _ in range(4)]
  for mine, other in losses:
    assert mine == pytest.approx(other, rel=1e-5)
  assert losses[-1][0] < losses[0][0]


def line(part, pairs, **more):
  return {'part': part, 'size': 'mini', 'length': 16, 'tokens': 16, 'seconds': pairs, **more}


def test_ratios_are_of_times_or_of_speeds(speed):
  rows = [
    line('one text', [(0.002, 0.004), (0.003, 0.004), (0.004, 0.004)]),
    line('many texts', [(0.002, 0.004)], texts=7),
    line('training step', [(0.002, 0.001)], rows=2),
  ]
  found = speed.table(rows).splitlines()[2:]
  assert '| 3.00 ms | 4.00 ms | 0.75 (0.50 to 1.00) | at most 1.2; 16 tokens: 3 ms |' in found[0]
  assert '| 7 texts | mini | 16, at most | 8,000 tokens/s | 4,000 tokens/s | 2.00 (' in found[1]
  assert '| 2 x 16 | 8,000 tokens/s | 16,000 tokens/s | 0.50 (0.50 to 0.50) |' in found[2]


def test_the_section_of_the_page_is_that_of_the_results(speed, tmp_path):
  content = json.loads(RESULTS.read_text('utf-8'))
  text = (ROOT / 'docs/finetuning.md').read_text('utf-8')
  assert speed.HEADING + speed.page_section(content) in text
  rows = {(one['part'], one['size'], one['length']) for one in content['results']}
  measured = [(part, length) for part in list(speed.MEASURES)[:3] for length in (16, 128, 256)]
  assert rows >= {(part, size, length) for size in ('mini', 'small') for part, length in measured}
  page = tmp_path / 'page.md'
  page.write_text(f'# A\n\n{speed.HEADING}\nold\n\n## B\n\nkept\n', 'utf-8')
  speed.write_page(RESULTS, page)
  expected = f'# A\n\n{speed.HEADING}{speed.page_section(content)}## B\n\nkept\n'
  assert page.read_text('utf-8') == expected
