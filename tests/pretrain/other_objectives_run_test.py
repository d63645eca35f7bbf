"""Every mode works on runs of other objectives."""

import importlib.util
import json

import micro_run
import numpy as np
import pytest

import electra_jax
from electra_jax import report
from electra_jax.config import checked_pretraining
from electra_jax.errors import UserError
from electra_jax.pretrain import train
from electra_jax.pretrain.evaluation import evaluate
from electra_jax.pretrain.inspect import inspect
from electra_jax.pretrain.minimal_pairs import blimp
from electra_jax.timeline import timeline

pytestmark = pytest.mark.usefixtures('on_one_device')
JUDGED = {'discriminator_loss', 'auc'}


def micro(objective, workdir, **fields):
  """Trains the micro config with another objective in this process, and opens the run."""
  spec = importlib.util.spec_from_file_location('micro', micro_run.ROOT / micro_run.CONFIG)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  c = module.get_config(f'objective={objective}')
  c.update_from_flattened_dict(
    {
      'data.source': str(micro_run.corpus()),
      'data.cache': str(micro_run.shared() / 'cache'),
      'data.reader': 'numpy',
      'steps': 8,
      'compilation_cache': '',
      'eval_every': 4,
      'save_every': 4,
      **fields,
    }
  )
  checked_pretraining(c)
  assert train.train(c, str(workdir)) == 0
  return electra_jax.load(str(workdir))


@pytest.mark.parametrize(
  'objective, fields, judged, predicted, towers',
  [
    ('mlm', {}, False, False, ['generator']),
    pytest.param(
      'replace_mlm', {'generator.uniform': True}, False, True, [], marks=pytest.mark.long
    ),
    pytest.param(
      'all_tokens_mlm', {}, True, True, ['discriminator', 'generator'], marks=pytest.mark.long
    ),
  ],
)
def test_every_mode_shows_the_metrics_and_towers_of_the_objective(
  objective, fields, judged, predicted, towers, tmp_path, capsys
):
  run = micro(objective, tmp_path / 'run', **fields)
  (header, *_) = [
    line.split()
    for line in capsys.readouterr().out.splitlines()
    if line.split()[:2] == ['step', 'loss']
  ]
  assert ('recall' in header, 'pred' in header, 'gen' in header) == (judged, predicted, True)
  result = evaluate(run)
  assert (JUDGED <= set(result['figures'])) == judged and (
    'prediction_loss' in result['figures']
  ) == predicted
  assert all(
    np.isfinite(result['figures'][name]['value']) for name in ('generator_loss', 'total_loss')
  )
  shown = inspect(run, rows=1)
  assert ('caught' in shown) == judged and 'masked' in shown
  report.report(str(tmp_path / 'run'))
  text = (tmp_path / 'run' / 'report.md').read_text()
  assert f'| objective | {objective} |' in text and ('area under' in text) == judged
  timeline(str(tmp_path / 'run'))
  points = json.loads((tmp_path / 'run' / 'timeline.json').read_text())['points']
  assert ('auc' in points[-1]['heldout']) == judged
  pairs = tmp_path / 'pairs.jsonl'
  pairs.write_text(json.dumps({'sentence_good': 'ba ko ti.', 'sentence_bad': 'ti ba.'}) + '\n')
  if towers:
    assert sorted(set(blimp(run, str(pairs))['total']) - {'pairs'}) == towers
  else:
    with pytest.raises(UserError, match='neither a discriminator nor a generator'):
      blimp(run, str(pairs))
  reading = run(['ba ko ti'])
  assert np.isfinite(reading.hidden_states).all() and np.isnan(reading.replaced).all() == (
    not judged
  )
