"""Minimal pairs are read, and scored as by a simple program; only the sentence decides."""

import gzip
import json
import pathlib
import tarfile

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from electra_jax.data.tokenizers.tokenization import SPECIAL_TOKENS, load_tokenizer
from electra_jax.errors import UserError
from electra_jax.model.encoder import packed_inputs
from electra_jax.pretrain import minimal_pairs
from electra_jax.pretrain.trained_run import Run
from electra_jax.training import partitioning

REAL = pathlib.Path(__file__).parents[3] / 'shared/data/blimp.tar.xz'
LETTERS = 'abcdefghijklmnopqrstuvwxyz'
# 4, 4, 12, 12 and 22 tokens, for which three programs are compiled.
TEXTS = ['a b', 'cd', 'a b c d e f g h i j', 'the 1 cat fgh', 'z' * 20]


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp('vocabulary') / 'vocab.txt'
  path.write_text('\n'.join([*SPECIAL_TOKENS, *LETTERS, *('##' + letter for letter in LETTERS)]))
  return load_tokenizer(path, lowercase=True)


def make_run(tokenizer, workdir='', family='modern', devices=1, **options):
  model = conftest.tiny_electra(family, **options)
  layout = partitioning.make_layout(devices=jax.devices()[:devices])
  params = jax.device_put(conftest.random_params(model), partitioning.replicated(layout.mesh))
  return Run(
    workdir=str(workdir),
    step=7,
    resolved=None,
    config=None,
    tokenizer=tokenizer,
    model=model,
    params=params,
    settings=None,
    layout=layout,
  )


def rows_of(tokenizer, texts):
  return [
    np.array([tokenizer.cls_id, *tokenizer.encode(text), tokenizer.sep_id], np.int32)
    for text in texts
  ]


def simple_scores(run, rows):
  """Both scores of each sentence, one row at a time without padding, logits of every position."""
  model, t = run.model, run.tokenizer

  def inputs(ids):
    return packed_inputs(ids[None], t.pad_id, t.cls_id, t.sep_id)

  def apply(params, inputs, *more, method):
    return model.apply({'params': params}, inputs, *more, method=method)[0]

  both = jax.jit(
    lambda params, ids, masked: (
      apply(params, inputs(ids), method='discriminator_logits'),
      apply(params, inputs(masked), jnp.arange(len(ids))[None], method='generator_logits'),
    )
  )
  scores = {'discriminator': np.zeros(len(rows)), 'generator': np.zeros(len(rows))}
  for number, row in enumerate(rows):
    for i in range(1, len(row) - 1):
      masked = row.copy()
      masked[i] = t.mask_id
      verdicts, vocabulary = jax.device_get(both(run.params, row, masked))
      scores['discriminator'][number] += np.log(1 - 1 / (1 + np.exp(-np.float64(verdicts[i]))))
      logits = vocabulary[i].astype(np.float64)
      scores['generator'][number] += (
        logits[row[i]] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
      )
  return scores


@pytest.mark.parametrize(
  'family, sharing',
  [('modern', 'embeddings'), pytest.param('electra', 'none', marks=pytest.mark.long)],
)
def test_scores_are_those_of_a_simple_program(tokenizer, family, sharing):
  run = make_run(tokenizer, family=family, sharing=sharing)
  rows = rows_of(tokenizer, TEXTS if family == 'modern' else TEXTS[:4])
  assert [len(row) for row in rows] == [4, 4, 12, 12, 22][: len(rows)]
  scores = minimal_pairs.score_sentences(run, rows)
  expected = simple_scores(run, rows)
  for tower in minimal_pairs.TOWERS:
    assert scores[tower].shape == (len(rows),) and (scores[tower] < 0).all()
    np.testing.assert_allclose(scores[tower], expected[tower], rtol=2e-5, err_msg=tower)


def test_scores_do_not_depend_on_other_rows_batches_or_devices(tokenizer):
  run, rows = make_run(tokenizer), rows_of(tokenizer, TEXTS)
  expected = minimal_pairs.score_sentences(run, rows)
  done = []
  for scores, chosen in (
    (minimal_pairs.score_sentences(run, rows, batch_tokens=40, progress=done.append), slice(None)),
    (minimal_pairs.score_sentences(run, rows[::-1]), slice(None, None, -1)),
    (minimal_pairs.score_sentences(run, rows[2:3]), slice(2, 3)),
    (minimal_pairs.score_sentences(make_run(tokenizer, devices=8), rows), slice(None)),
  ):
    for tower in minimal_pairs.TOWERS:
      np.testing.assert_allclose(scores[tower], expected[tower][chosen], rtol=1e-5)
  assert sum(done) == sum(minimal_pairs.bucket(len(row)) * (len(row) - 1) for row in rows)


def test_padded_lengths_are_few_and_long_enough():
  sizes = [minimal_pairs.bucket(length) for length in range(2, 513)]
  assert (
    all(size >= length for length, size in zip(range(2, 513), sizes, strict=True))
    and sizes == sorted(sizes)
    and len(set(sizes)) <= 16
  )
  assert max(size / length for length, size in zip(range(9, 513), sizes[7:], strict=True)) < 2


def line(good, bad, **more):
  return json.dumps({'sentence_good': good, 'sentence_bad': bad} | more) + '\n'


def write_pairs(folder):
  """Two paradigms in BLiMP's layout."""
  (folder / 'data').mkdir(parents=True)
  (folder / 'data/one.jsonl').write_text(
    line('a b', 'b a', UID='one', linguistics_term='s-selection', field='syntax/semantics')
    + line('c d', 'a a', UID='one', linguistics_term='s-selection', field='syntax/semantics')
  )
  (folder / 'data/two.jsonl').write_text(
    line('the cat', 'cat the', UID='two', linguistics_term='argument_structure', field='syntax')
    + '\n'
    + line('same', 'same', UID='two', linguistics_term='argument_structure', field='syntax')
  )
  return folder


def test_folders_archives_and_files_hold_the_same_pairs(tmp_path):
  folder = write_pairs(tmp_path / 'pairs')
  expected = [tuple(pair[:5]) for pair in minimal_pairs.read_pairs(str(folder))]
  assert (
    expected[0] == ('a b', 'b a', 'one', 'argument_structure', 'syntax_semantics')
    and len(expected) == 4
  )  # as the paper groups them
  for name, mode in (('a.tar.xz', 'w:xz'), ('b.tgz', 'w:gz'), ('c.tar', 'w')):
    with tarfile.open(tmp_path / name, mode) as archive:
      archive.add(folder, 'blimp', filter=lambda member: member)
    assert sorted(
      tuple(pair[:5]) for pair in minimal_pairs.read_pairs(str(tmp_path / name))
    ) == sorted(expected)
  both = b''.join(path.read_bytes() for path in sorted((folder / 'data').iterdir()))
  (tmp_path / 'all.jsonl.gz').write_bytes(gzip.compress(both))
  assert [
    tuple(pair[:5]) for pair in minimal_pairs.read_pairs(str(tmp_path / 'all.jsonl.gz'))
  ] == expected
  assert [pair.good for pair in minimal_pairs.read_pairs(str(folder), limit=1)] == [
    'a b',
    'the cat',
  ]


def test_pairs_require_only_the_sentences(tmp_path):
  (tmp_path / 'mine.jsonl').write_text(line('a', 'b'))
  (pair,) = minimal_pairs.read_pairs(str(tmp_path / 'mine.jsonl'))
  assert tuple(pair[:5]) == ('a', 'b', 'mine', 'of no phenomenon', 'of no field')


@pytest.mark.parametrize(
  'name, content, message',
  [
    (
      'a.jsonl',
      line('a', 'b') + '{"sentence_good": "a"}\n',
      "line 2 of the file '.*a.jsonl' has no field 'sentence_bad'; its fields are 'sentence_good'",
    ),
    ('a.jsonl', line('a', ' '), "line 1 of .* has no sentence in its field 'sentence_bad'"),
    ('a.jsonl', line('a', 3), "line 1 of .* has no sentence in its field 'sentence_bad'"),
    ('a.jsonl', '{"sentence_good": \n', 'line 1 of .* is not valid JSON'),
    ('a.jsonl', b'\xff\n', 'line 1 of .* is not valid JSON'),
    ('a.jsonl', '[1]\n', 'line 1 of .* is not a JSON object'),
    ('a.jsonl', '\n', "a.jsonl' has no minimal pairs"),
    ('a.tar.xz', 'no archive', "a.tar.xz' cannot be read"),
    ('a.tar', 'no archive', "a.tar' cannot be read"),
    ('a.jsonl.gz', 'not compressed', "a.jsonl.gz' cannot be read"),
    ('folder', None, 'has no minimal pairs'),
    ('', None, "nowhere' cannot be read"),
  ],
)
def test_damaged_sources_are_refused(tmp_path, name, content, message):
  if content is None:
    (tmp_path / 'folder').mkdir()
  else:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
  with pytest.raises(UserError, match=message) as error:
    minimal_pairs.read_pairs(str(tmp_path / (name or 'nowhere')))
  assert '\n' not in str(error.value)


def test_a_sentence_longer_than_the_positions_is_refused(tmp_path, tokenizer):
  (tmp_path / 'a.jsonl').write_text(line('a', 'b') + line('a', 'b ' * 70))
  with pytest.raises(
    UserError,
    match='line 2 of the file .* has a sentence of 72 tokens, and the encoder has 64 positions',
  ):
    minimal_pairs.blimp(make_run(tokenizer, family='electra'), str(tmp_path / 'a.jsonl'))


def test_equal_scores_count_one_half():
  np.testing.assert_array_equal(
    minimal_pairs.verdicts(np.array([1.0, 1.0, 1.0]), np.array([0.0, 1.0, 2.0])), [1, 0.5, 0]
  )


@pytest.mark.parametrize('right, n', [(0, 10), (10, 10), (7, 10), (512, 1000)])
def test_intervals_are_wilsons(right, n):
  ours = minimal_pairs.share(np.arange(n) < right)
  theirs = scipy.stats.binomtest(right, n).proportion_ci(method='wilson')
  np.testing.assert_allclose(
    [ours['value'], ours['low'], ours['high']], [right / n, theirs.low, theirs.high], atol=1e-6
  )


def test_a_run_is_scored_and_the_results_are_saved(tmp_path, tokenizer, capsys):
  folder, run = write_pairs(tmp_path / 'pairs'), make_run(tokenizer, tmp_path)
  result = minimal_pairs.blimp(run, str(folder))
  out = capsys.readouterr().out
  assert json.loads((tmp_path / 'blimp.json').read_text()) == result and result['step'] == 7
  scores = minimal_pairs.score_sentences(
    run, rows_of(tokenizer, ['a b', 'b a', 'c d', 'a a', 'the cat', 'cat the', 'same', 'same'])
  )
  for tower, values in scores.items():
    right = [float(values[i] > values[i + 1]) for i in (0, 2, 4)] + [0.5]
    assert result['total'][tower]['value'] == np.mean(right) and result['total'][tower]['ties'] == 1
    assert result['paradigms']['one'][tower]['value'] == np.mean(right[:2]) and result['paradigms'][
      'two'
    ][tower]['value'] == np.mean(right[2:])
    assert result['phenomena']['argument_structure'][tower]['value'] == np.mean(right)
    assert result['fields']['syntax_semantics'][tower]['value'] == np.mean(right[:2])
  for words in (
    '4 of 2 paradigms',
    'one',
    'two',
    'argument_structure',
    'syntax_semantics',
    'total',
    'one half: 1 and 1',
    'blimp.json',
  ):
    assert words in out
  other = minimal_pairs.blimp(run, str(folder), str(tmp_path / 'other'), limit=1)
  written = json.loads((tmp_path / 'other' / 'blimp.json').read_text())
  assert written == other and other['total']['pairs'] == 2


def test_swapping_the_sentences_swaps_the_verdicts(tmp_path, tokenizer):
  rng, run = np.random.default_rng(0), make_run(tokenizer, tmp_path)
  texts = [
    (' '.join(rng.choice(list(LETTERS), 5)), ' '.join(rng.choice(list(LETTERS), 5)))
    for _ in range(30)
  ]
  for name, order in (('a', 1), ('b', -1)):
    (tmp_path / f'{name}.jsonl').write_text(''.join(line(*pair[::order]) for pair in texts))
  a, b = (minimal_pairs.blimp(run, str(tmp_path / f'{name}.jsonl'))['total'] for name in 'ab')
  for tower in minimal_pairs.TOWERS:
    assert a[tower]['value'] + b[tower]['value'] == pytest.approx(1) and 0 < a[tower]['value'] < 1


@pytest.mark.skipif(not REAL.exists(), reason='needs ../shared/data/blimp.tar.xz')
def test_blimp_has_its_paradigms_and_phenomena():
  pairs = minimal_pairs.read_pairs(str(REAL))
  assert len(pairs) == 67_000 and len({pair.paradigm for pair in pairs}) == 67
  assert len({pair.phenomenon for pair in pairs}) == 12 and len({pair.field for pair in pairs}) == 4
