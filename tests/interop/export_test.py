"""Exported runs give the same outputs in other programs and survive reading back bit for bit."""

import json
import pathlib
import re
import shutil

import hf_files
import jax
import made_run
import made_tokenizers
import micro_run
import numpy as np
import pytest
from huggingface_hub import ModelCard

import electra_jax
from electra_jax import export, main, verify
from electra_jax.data.tokenizers.tokenization import load_tokenizer
from electra_jax.errors import UserError
from electra_jax.interop import google, huggingface, own
from electra_jax.interop.weights import same_bits
from electra_jax.model.encoder import packed_inputs

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)  # models are small and tests run in parallel

# Family, sharing scheme, and the fraction of the discriminator that the generator is.
KINDS = {
  'electra': ('electra', 'embeddings', 0.5),
  'untied': ('electra', 'none', 0.5),
  'one tower': ('electra', 'all', 1.0),
  'modern': ('modern', 'all', 1.0),
  'modern, projected': ('modern', 'embeddings', 0.5),
}


def read_card(text):
  return ModelCard(text).data


def config_of(kind, heads_of=64):
  """Returns a config with heads of 64, which the original program requires, or as given."""
  family, sharing, fraction = KINDS[kind]
  config = main.parse_flags(['main', '--config=tests/configs/micro.py']).config
  config.model.update(
    family=family,
    hidden_size=2 * heads_of,
    embedding_size=48 if family == 'electra' else 2 * heads_of,
    num_layers=2,
    num_heads=2,
    intermediate_size=8 * heads_of,
    max_positions=40,
    global_every=2,
    layer_norm_eps=1e-12 if family == 'electra' else 1e-5,
  )
  config.generator.hidden_fraction, config.sharing = fraction, sharing
  return config


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Returns a function that makes runs by kind, with WordPiece for the electra family."""
  folder, made = tmp_path_factory.mktemp('runs'), {}
  vocabulary = load_tokenizer(made_run.wordpiece(folder / 'vocabulary'))
  sentences = made_tokenizers.train(
    [*made_run.TEXTS, micro_run.corpus().read_text()], kind='unigram', vocab_size=200
  )

  def run(kind):
    if kind not in made:
      made[kind] = str(folder / kind)
      made_run.make(
        made[kind], config_of(kind), vocabulary if KINDS[kind][0] == 'electra' else sentences
      )
    return made[kind]

  return run


# interop/hf_export_test.py checks the other sharing schemes on weights, make test-clients on runs.
@pytest.mark.parametrize(
  'kind',
  [
    kind if kind in ('electra', 'modern') else pytest.param(kind, marks=pytest.mark.clients)
    for kind in KINDS
  ],
)
def test_transformers_gives_the_same_outputs(kind, runs, tmp_path, capsys):
  output = str(tmp_path / 'out')
  export.export(runs(kind), output)
  run, out = electra_jax.load(runs(kind)), capsys.readouterr().out
  tokenizer = transformers.AutoTokenizer.from_pretrained(f'{output}/discriminator')
  assert tokenizer.model_max_length == run.config.sequence_length
  inputs = tokenizer(made_run.TEXTS, padding=True, return_tensors='pt')
  reading = run(made_run.TEXTS)
  for ids, mask, tokens in zip(
    inputs['input_ids'], inputs['attention_mask'], reading.tokens, strict=True
  ):
    assert [run.tokenizer.token(i) for i in ids[mask == 1]] == tokens
  if KINDS[kind][0] == 'electra':
    model, loaded = transformers.AutoModelForPreTraining.from_pretrained(
      f'{output}/discriminator', output_loading_info=True
    )
    assert not any(loaded.values()), loaded
  else:
    model = hf_files.detector(f'{output}/discriminator')
  encoder = transformers.AutoModel.from_pretrained(f'{output}/discriminator')
  with torch.no_grad():
    detected = model(**inputs).logits.sigmoid().reshape(inputs['input_ids'].shape).numpy()
    hidden = encoder(**inputs).last_hidden_state.numpy()
  for i, tokens in enumerate(reading.tokens):
    np.testing.assert_allclose(
      reading.replaced[i, : len(tokens)], detected[i, : len(tokens)], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
      reading.hidden_states[i, : len(tokens)], hidden[i, : len(tokens)], rtol=1e-4, atol=1e-5
    )
  if kind == 'modern, projected':
    assert (
      not pathlib.Path(output, 'generator').exists()
      and 'left out     the generator of' in out
      and 'ModernBERT has no such projection' in out
    )
    return
  generator, loaded = transformers.AutoModelForMaskedLM.from_pretrained(
    f'{output}/generator', output_loading_info=True
  )
  assert not any(loaded.values()), loaded
  ids = inputs['input_ids'].numpy()
  positions = np.tile(np.arange(1, 4, dtype=np.int32), (len(ids), 1))
  logits_at = jax.jit(
    lambda params: run.model.apply(
      {'params': params},
      packed_inputs(ids, 0, run.tokenizer.cls_id, run.tokenizer.sep_id),
      positions,
      method='generator_logits',
    )
  )
  ours = logits_at(run.params)
  with torch.no_grad():
    theirs = generator(**inputs).logits.numpy()
  np.testing.assert_allclose(
    np.asarray(ours)[:, :, : run.tokenizer.size],
    np.take_along_axis(theirs, positions[..., None], 1),
    rtol=1e-4,
    atol=2e-5,
  )
  texts = ['the chef ate [MASK] meal.', '[MASK] house of [MASK], it said [MASK].']
  pipe = transformers.pipeline('fill-mask', model=generator, tokenizer=tokenizer, top_k=3)
  for found, expected in zip(run.fill_mask(texts, top=3), pipe(texts), strict=True):
    for candidates, wanted in zip(
      found, [expected] if isinstance(expected[0], dict) else expected, strict=True
    ):
      assert [one.token_id for one in candidates] == [one['token'] for one in wanted]
      np.testing.assert_allclose(
        [one.probability for one in candidates], [one['score'] for one in wanted], atol=1e-5
      )
  # No padding rows.
  assert generator.config.vocab_size == run.tokenizer.size == len(tokenizer)


def test_the_length_of_an_exported_tokenizer_is_that_of_the_longest_phase(tmp_path):
  config = main.parse_flags(['main', '--config=tests/configs/micro_phases.py']).config
  config.generator.hidden_fraction = 1.0  # ModernBERT has no projection
  lengths = [config.sequence_length, *(phase.get('sequence_length', 0) for phase in config.phases)]
  assert len({*lengths}) > 1
  tokenizer = load_tokenizer(made_run.wordpiece(tmp_path / 'vocabulary'))
  made_run.make(str(tmp_path / 'run'), config, tokenizer)
  export.export(str(tmp_path / 'run'), str(tmp_path / 'out'))
  for tower in export.TOWERS:
    settings = json.loads((tmp_path / 'out' / tower / 'tokenizer_config.json').read_text())
    assert settings['model_max_length'] == max(lengths)


@pytest.mark.parametrize('kind', ['electra', 'untied', 'one tower', 'modern'])
def test_runs_survive_transformers_bit_for_bit(kind, runs, tmp_path):
  export.export(runs(kind), str(tmp_path))
  before, after = own.read_weights(runs(kind)), huggingface.read_weights(str(tmp_path))
  assert same_bits(before.params, after.params) and after.sharing == KINDS[kind][1]
  assert load_tokenizer(after.tokenizer).tokens == load_tokenizer(before.tokenizer).tokens


@pytest.mark.parametrize('kind', ['electra', 'one tower'])
def test_runs_survive_tensorflow_with_moments_and_step_bit_for_bit(kind, runs, tmp_path, capsys):
  export.export(runs(kind), str(tmp_path), format='tensorflow')
  before, after = own.read_weights(runs(kind)), google.read_weights(str(tmp_path))
  assert same_bits(before.params, after.params) and (before.step, after.step) == (7, 7)
  assert same_bits(before.moments, after.moments)
  assert load_tokenizer(after.tokenizer).tokens == load_tokenizer(before.tokenizer).tokens
  export.export(runs(kind), str(tmp_path), format='tensorflow')  # replaces itself


def test_models_that_the_original_does_not_have_are_refused_with_the_reason(runs, tmp_path):
  with pytest.raises(UserError, match='modern'):
    export.export(runs('modern'), str(tmp_path), format='tensorflow')
  assert not any(path.name.startswith('model.ckpt') for path in tmp_path.iterdir())


@pytest.mark.parametrize(
  'tower, use, metric',
  [
    ('discriminator', 'AutoModelForPreTraining', None),
    ('generator', 'pipeline("fill-mask", model)', ('fill-mask', 'loss', 4.25)),
  ],
)
def test_the_card_describes_the_run_and_its_use(runs, tmp_path, tower, use, metric):
  export.export(runs('electra'), str(tmp_path), license='apache-2.0', language=['en'])
  text = (tmp_path / tower / 'README.md').read_text()
  for fact in (
    f'weights of {tower} at step 7',
    '1.79 k tokens',
    '| generator loss | 4.2500 |',
    '| batch | 8 rows of 32 tokens |',
    '| `batch_size` | `8` |',
    'Trained with electra_jax ',
    '| FLOPs | ',
    use,
  ):
    assert fact in text, fact
  assert str(tmp_path.parent) not in text
  data = read_card(text)
  assert (data.license, data.language, data.library_name) == ('apache-2.0', ['en'], 'transformers')
  measured = [(r.task_type, r.metric_type, r.metric_value) for r in data.eval_results or ()]
  assert measured == ([metric] if metric else [])


@pytest.mark.parametrize('kind', ['electra', 'modern'])
def test_the_example_of_a_card_runs(kind, runs, tmp_path, monkeypatch, capsys):
  export.export(runs(kind), str(tmp_path))
  for tower, expected in (('discriminator', 'tensor'), ('generator', "'token_str'")):
    monkeypatch.chdir(tmp_path / tower)
    capsys.readouterr()
    exec(example_of('README.md'), {})
    assert expected in capsys.readouterr().out


def example_of(card):
  """The Python code of a model card, or of a page."""
  (code,) = re.findall(r'^```python\n(.*?)^```$', pathlib.Path(card).read_text(), re.M | re.S)
  return code


def test_the_example_of_the_page_gives_the_verdicts_of_the_run(runs, tmp_path, monkeypatch):
  page = pathlib.Path('docs/interop.md').resolve()
  export.export(runs('modern'), str(tmp_path / 'published'))
  run = electra_jax.load(runs('modern'))
  monkeypatch.chdir(tmp_path)
  found = {}
  exec(example_of(page), found)
  text = 'the chef ate the meal'
  assert text in example_of(page)
  (theirs,) = found['replaced'].detach().numpy()[..., 0]
  np.testing.assert_allclose(run([text]).replaced[0, : len(theirs)], theirs, rtol=1e-5, atol=1e-6)


def test_earlier_exports_are_replaced_and_other_files_are_not(runs, tmp_path):
  export.export(runs('electra'), str(tmp_path))
  export.export(runs('electra'), str(tmp_path))
  (tmp_path / 'thesis.tex').write_text('dear')
  with pytest.raises(
    UserError, match="which has 'thesis.tex'; expected an empty folder or an earlier export"
  ):
    export.export(runs('electra'), str(tmp_path))
  with pytest.raises(UserError, match='is a file; expected a folder'):
    export.export(runs('electra'), str(tmp_path / 'thesis.tex'))


def test_an_export_has_checksums_that_are_compared_when_it_is_read(runs, tmp_path, capsys):
  for kind, output in (('transformers', 'hf'), ('tensorflow', 'tf')):
    export.export(runs('electra'), str(tmp_path / output), format=kind)
    verify.verify(str(tmp_path / output))
  assert capsys.readouterr().out.count('whole') == 5  # files and config of each tower; one folder
  huggingface.read_weights(str(tmp_path / 'hf'))
  for name in ('generator/model.safetensors', 'discriminator/config.json'):
    path = tmp_path / 'hf' / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f'{name}. differs from its checksum'):
      huggingface.read_weights(str(tmp_path / 'hf'))
    with pytest.raises(UserError, match='parts are damaged, first'):
      verify.verify(str(tmp_path / 'hf'))
    content[-3] ^= 1
    path.write_bytes(content)
  # A card may be edited, also beside checksums of earlier versions, which had it.
  folder = tmp_path / 'hf' / 'discriminator'
  assert 'README.md' not in (folder / 'SHA256SUMS').read_text()
  (folder / 'README.md').write_text('a card of my own')
  with (folder / 'SHA256SUMS').open('a') as sums:
    sums.write(f'{"0" * 64}  README.md\n')
  huggingface.read_weights(str(tmp_path / 'hf'))
  verify.verify(str(tmp_path / 'hf'))


def test_no_file_of_an_earlier_export_remains(runs, tmp_path):
  for kind, tokenizer in (('modern', 'tokenizer.model'), ('electra', 'vocab.txt')):
    export.export(runs(kind), str(tmp_path))
    assert {
      name for name in ('tokenizer.model', 'vocab.txt') if (tmp_path / 'generator' / name).exists()
    } == {tokenizer}
  export.export(runs('modern, projected'), str(tmp_path))  # has no generator for transformers
  assert not list((tmp_path / 'generator').iterdir())
  (tmp_path / 'discriminator' / 'README.md').write_text('# My own text')
  with pytest.raises(UserError, match="which has 'discriminator/README.md'; expected"):
    export.export(runs('electra'), str(tmp_path))


def test_a_checkpoint_without_metrics_is_exported_without_them(runs, tmp_path):
  shutil.copytree(runs('electra'), tmp_path / 'run')
  (tmp_path / 'run' / 'metrics.jsonl').unlink()
  export.export(str(tmp_path / 'run'), str(tmp_path / 'out'))
  card = (tmp_path / 'out' / 'generator' / 'README.md').read_text()
  assert (
    'weights of generator at step 7' in card and '## Recipe' in card and '## Metrics' not in card
  )


@pytest.mark.parametrize(
  'argv, message',
  [
    (['--workdir=here'], '--mode=export requires --output'),
    (['--workdir=nowhere', '--output=out'], 'nowhere is not a run'),
    (['--workdir=here', '--output=out', '--rows=3'], '--rows applies to --mode=evaluate'),
    (['--workdir=here', '--output=out', '--format=onnx'], 'format'),
  ],
)
def test_mistakes_are_onetest_mistakes_are_reported_in_one_sentence(
  argv, message, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  assert main.main(['main', '--mode=export', *argv]) == 1
  err = capsys.readouterr().err
  assert message in err and err.count('\n') == 1


def test_a_fine_tuned_model_of_transformers_survives_import_and_export(
  tmp_path, monkeypatch, capsys
):
  config = transformers.ElectraConfig(
    vocab_size=len(load_tokenizer(made_run.wordpiece(tmp_path / 'model')).tokens),
    hidden_size=32,
    embedding_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=40,
    id2label={0: '0', 1: '1'},
    label2id={'0': 0, '1': 1},
  )
  torch.manual_seed(0)
  model = transformers.ElectraForSequenceClassification(config).eval()
  model.save_pretrained(tmp_path / 'model')
  argv = [
    'main',
    '--mode=import',
    '--config=tests/configs/finetune_micro.py',
    f'--config.init=hf:{tmp_path / "model"}',
    f'--workdir={tmp_path / "run"}',
  ]
  assert main.main(argv) == 0
  assert (
    main.main(
      ['main', '--mode=export', f'--workdir={tmp_path / "run"}', f'--output={tmp_path / "out"}']
    )
    == 0
  )
  back, loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
    tmp_path / 'out', output_loading_info=True
  )
  assert not any(loaded.values())
  for (name, a), b in zip(model.state_dict().items(), back.state_dict().values(), strict=True):
    assert torch.equal(a, b), name
  assert back.config.id2label == {0: '0', 1: '1'}
  monkeypatch.chdir(tmp_path / 'out')
  assert read_card(pathlib.Path('README.md').read_text()).pipeline_tag == 'text-classification'
  exec(example_of('README.md'), {})
  assert "'score'" in capsys.readouterr().out
  assert json.loads((tmp_path / 'out' / 'config.json').read_text())['architectures'] == [
    'ElectraForSequenceClassification'
  ]
