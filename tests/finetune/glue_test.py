"""GLUE is read from its original files and from TFDS, scored as defined, and written for its site.

The sentences are synthetic.
"""

import functools
import math
import os
import pathlib
import subprocess
import sys

import finetune_files
import numpy as np
import pytest

from electra_jax.errors import UserError
from electra_jax.finetune.tasks.text_task import Example
from electra_jax.registry import TASKS

REPOSITORY = pathlib.Path(__file__).parents[2]
REAL = REPOSITORY.parent / 'shared/data/glue'
NAMES = [name for name in TASKS if TASKS.get(name).fixed_labels]

PARSES = (
  'promptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t'
  'sentence2_parse'
)
LABELS = 'label1\tlabel2\tgold_label'
PARSED = '7\t7e\tfiction\t( a )\t( b )\t(ROOT a)\t(ROOT b)'
STS = 'index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2'
MRPC_ROWS = [
  '1\t100\t101\tHe said "so.\tSo he said.',
  '0\t102\t103\tA cat sat.\tA dog ran.',
  '1\t104\t105\tIt rains.\tRain falls.',
]

# Files like those of the download script, by path, with its headers, quotes, marks and gaps.
FILES = {
  'CoLA/train.tsv': 'gj04\t1\t\tThe cat sat.\ngj04\t0\t*\tCat the "sat.\ngj04\t1\t\tsentence\n',
  'CoLA/dev.tsv': 'x\t0\t??\tSat the.\nx\t1\t\tIt sat.',
  'CoLA/test.tsv': 'index\tsentence\n0\tIt ran.\n1\tRan it.\n',
  'SST-2/train.tsv': 'sentence\tlabel\na joy \t1\n" dull \t0\n',
  'SST-2/dev.tsv': 'sentence\tlabel\nfine \t1\n',
  'SST-2/test.tsv': 'index\tsentence\n0\tmoving\n1\t"grand\n',
  'MRPC/train.tsv': '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n'
  + '\n'.join(MRPC_ROWS[:2])
  + '\n',
  'MRPC/dev.tsv': 'Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n' + MRPC_ROWS[2] + '\r\n',
  'MRPC/test.tsv': 'index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\tOne "fish.\tTwo fish.\n',
  'STS-B/train.tsv': f'{STS}\tscore\n0\tg\tf\t2012\t1\tn\tn\tA plane.\tA "jet.\t3.750\n'
  '1\tg\tf\t2012\t2\tn\tn\tA hat.\tA car.\t0.000\n',
  'STS-B/dev.tsv': f'{STS}\tscore\n0\tg\tf\t2012\t1\tn\tn\tTwo men.\tTwo men.\t5.000\n',
  'STS-B/test.tsv': f'{STS}\n0\tg\tf\t2012\t1\tn\tn\tA boat.\tA ship.\n',
  'QQP/train.tsv': 'id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n'
  + ''.join(f'{i}\t{i}\t{i}\tWhy {i}?\tHow {i}?\t{i % 2}\n' for i in range(200))
  + '200\t1\t2\tWhy\n?\tWhat for?\t1\n201\t1\t2\tWho?\tWhom?\t0\n',
  'QQP/dev.tsv': 'id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n'
  '0\t1\t2\tWhen?\tSince when?\t0\n',
  'QQP/test.tsv': 'id\tquestion1\tquestion2\n0\tWhere?\tWhere to?\n',
  'MNLI/train.tsv': f'index\t{PARSES}\tsentence1\tsentence2\tlabel1\tgold_label\n'
  f'0\t{PARSED}\tIt "rains.\tIt is wet.\tneutral\tentailment\n',
  'MNLI/dev_matched.tsv': f'index\t{PARSES}\tsentence1\tsentence2\t{LABELS}\n'
  f'0\t{PARSED}\tA.\tB.\tneutral\tneutral\tcontradiction\n',
  'MNLI/dev_mismatched.tsv': f'index\t{PARSES}\tsentence1\tsentence2\t{LABELS}\n'
  f'0\t{PARSED}\tC.\tD.\tneutral\tneutral\tneutral\n',
  'MNLI/test_matched.tsv': f'index\t{PARSES}\tsentence1\tsentence2\n0\t{PARSED}\tE.\tF.\n',
  'MNLI/test_mismatched.tsv': f'index\t{PARSES}\tsentence1\tsentence2\n0\t{PARSED}\tG.\tH.\n',
  'QNLI/train.tsv': 'index\tquestion\tsentence\tlabel\n'
  '0\tWho?\tHe did.\tentailment\n1\tWhen?\tIt was red.\tnot_entailment\n',
  'QNLI/dev.tsv': 'index\tquestion\tsentence\tlabel\n0\tWhy?\tBecause.\tnot_entailment\n',
  'QNLI/test.tsv': 'index\tquestion\tsentence\n0\tWhere?\tHere.\n',
  'RTE/train.tsv': 'index\tsentence1\tsentence2\tlabel\n0\tIt rains.\tIt is wet.\tentailment\n',
  'RTE/dev.tsv': 'index\tsentence1\tsentence2\tlabel\n0\tIt rains.\tIt is dry.\tnot_entailment\n',
  'RTE/test.tsv': 'index\tsentence1\tsentence2\n0\tIt snows.\tIt is cold.\n',
  'WNLI/train.tsv': 'index\tsentence1\tsentence2\tlabel\n0\tI fell on it.\tI fell on ice.\t1\n',
  'WNLI/dev.tsv': 'index\tsentence1\tsentence2\tlabel\n0\tI saw her.\tI saw Ann.\t0\n',
  'WNLI/test.tsv': 'index\tsentence1\tsentence2\n0\tI met them.\tI met two.\n',
  'diagnostic/diagnostic.tsv': 'index\tsentence1\tsentence2\n0\tAll ran.\tSome ran.\n',
}

# The training and dev examples of each task: (first, second, target); a target is a label's index.
EXPECTED = {
  'cola': (
    [('The cat sat.', None, 1), ('Cat the "sat.', None, 0), ('sentence', None, 1)],
    [('Sat the.', None, 0), ('It sat.', None, 1)],
  ),
  'sst2': ([('a joy ', None, 1), ('" dull ', None, 0)], [('fine ', None, 1)]),
  'mrpc': (
    [
      ('He said "so.', 'So he said.', 1),
      ('A cat sat.', 'A dog ran.', 0),
      ('So he said.', 'He said "so.', 1),
      ('A dog ran.', 'A cat sat.', 0),
    ],
    [('It rains.', 'Rain falls.', 1)],
  ),
  'stsb': (
    [
      ('A plane.', 'A "jet.', 3.75),
      ('A hat.', 'A car.', 0.0),
      ('A "jet.', 'A plane.', 3.75),
      ('A car.', 'A hat.', 0.0),
    ],
    [('Two men.', 'Two men.', 5.0)],
  ),
  'qqp': (
    [(f'Why {i}?', f'How {i}?', i % 2) for i in range(200)] + [('Who?', 'Whom?', 0)],
    [('When?', 'Since when?', 0)],
  ),
  'mnli': ([('It "rains.', 'It is wet.', 1)], [('A.', 'B.', 0)]),
  'qnli': ([('Who?', 'He did.', 0), ('When?', 'It was red.', 1)], [('Why?', 'Because.', 1)]),
  'rte': ([('It rains.', 'It is wet.', 0)], [('It rains.', 'It is dry.', 1)]),
  'wnli': ([('I fell on it.', 'I fell on ice.', 1)], [('I saw her.', 'I saw Ann.', 0)]),
}

TESTS = {
  'cola': ('CoLA.tsv', [('It ran.', None), ('Ran it.', None)]),
  'sst2': ('SST-2.tsv', [('moving', None), ('"grand', None)]),
  'mrpc': ('MRPC.tsv', [('One "fish.', 'Two fish.')]),
  'stsb': ('STS-B.tsv', [('A boat.', 'A ship.')]),
  'qqp': ('QQP.tsv', [('Where?', 'Where to?')]),
  'mnli': ('MNLI-m.tsv', [('E.', 'F.')]),
  'qnli': ('QNLI.tsv', [('Where?', 'Here.')]),
  'rte': ('RTE.tsv', [('It snows.', 'It is cold.')]),
  'wnli': ('WNLI.tsv', [('I met them.', 'I met two.')]),
}


@pytest.fixture
def folder(tmp_path):
  for name, content in FILES.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content.encode())
  return tmp_path


def contents(examples):
  return [(example.first, example.second, example.target) for example in examples]


def message(name, source, split=None):
  with pytest.raises(UserError) as caught:
    task = finetune_files.opened(name, source=source)
    task.examples(split or 'train')
  assert '\n' not in str(caught.value)
  return str(caught.value)


def logits(task, places):
  return {'logits': np.eye(max(len(task.labels), 1), dtype=np.float32)[np.asarray(places)] * 3}


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('own_folder', [False, True])
def test_original_files_are_read_completely(folder, name, own_folder):
  source = (
    next(path for path in folder.iterdir() if path.name.lower().replace('-', '') == name)
    if own_folder
    else folder
  )
  task = finetune_files.opened(name, source=source)
  assert (contents(task.examples('train')), contents(task.examples('dev'))) == EXPECTED[name]
  tests = task.examples('test')
  assert [(example.first, example.second) for example in tests] == TESTS[name][1]
  assert all(
    math.isnan(example.target) if name == 'stsb' else example.target == -1 for example in tests
  )
  assert set(task.splits) >= {'train', 'dev', 'test'}


def test_mnli_has_mismatched_and_diagnostic_splits(folder):
  task = finetune_files.opened('mnli', source=folder)
  assert task.splits == ('train', 'dev', 'dev_mismatched', 'test', 'test_mismatched', 'diagnostic')
  assert contents(task.examples('dev_mismatched')) == [('C.', 'D.', 2)]
  assert contents(task.examples('test_mismatched')) == [('G.', 'H.', -1)]
  assert contents(task.examples('diagnostic')) == [('All ran.', 'Some ran.', -1)]
  assert all(
    math.isnan(value)
    for value in task.score(
      'diagnostic', task.examples('diagnostic'), None, logits(task, [0])
    ).values()
  )
  (folder / 'diagnostic').rename(folder / 'AX')
  (folder / 'AX/diagnostic-full.tsv').write_text(
    'Logic\tDomain\tPremise\tHypothesis\tLabel\n\tNews\tAll ran.\tSome ran.\tentailment\n'
    '\tNews\tSome ran.\tAll ran.\tneutral\n\tNews\tAll ran.\tNone ran.\tcontradiction\n'
  )
  task = finetune_files.opened('mnli', source=folder)
  assert [target for *_, target in contents(task.examples('diagnostic'))] == [1, 2, 0]
  assert task.score('diagnostic', task.examples('diagnostic'), None, logits(task, [1, 2, 0])) == {
    'matthews': 1.0,
    'accuracy': 1.0,
  }


def test_malformed_lines_of_qqp_are_skipped_and_reported(folder, capsys):
  finetune_files.opened('qqp', source=folder).examples('train')
  assert (
    '2 lines with more or fewer fields than the header are skipped, the first is line 202'
    in capsys.readouterr().out
  )
  (folder / 'QQP/dev.tsv').write_text(FILES['QQP/dev.tsv'] + '1\t1\n')
  found = message('qqp', folder, 'dev')
  assert 'line 3 of the file' in found and 'have more or fewer fields than the header' in found
  (folder / 'QQP/test.tsv').write_text(
    'id\tquestion1\tquestion2\n' + ''.join(f'{i}\tA?\tB?\n' for i in range(500)) + '500\tA?\n'
  )
  assert 'line 502 of the file' in message('qqp', folder, 'test'), (
    'a skipped line would shift the submission'
  )


def test_original_files_of_mrpc_are_split_by_the_ids_of_the_dev_set(folder):
  mrpc = folder / 'MRPC'
  for name in ('train.tsv', 'dev.tsv', 'test.tsv'):
    (mrpc / name).unlink()
  header = '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n'
  (mrpc / 'msr_paraphrase_train.txt').write_bytes((header + '\r\n'.join(MRPC_ROWS)).encode())
  (mrpc / 'msr_paraphrase_test.txt').write_bytes((header + MRPC_ROWS[0]).encode())
  assert 'has msr_paraphrase_train.txt without dev_ids.tsv' in message('mrpc', folder)
  (mrpc / 'dev_ids.tsv').write_text('104\t105\n105\t102\n')
  task = finetune_files.opened('mrpc', source=folder)
  assert (contents(task.examples('train')), contents(task.examples('dev'))) == EXPECTED['mrpc']
  assert contents(task.examples('test')) == [('He said "so.', 'So he said.', 1)]


@pytest.mark.parametrize('name', NAMES)
def test_labels_metrics_and_recipe(folder, name):
  task = finetune_files.opened(name, source=folder)
  metric = {'cola': 'matthews', 'mrpc': 'glue', 'qqp': 'glue', 'stsb': 'glue'}.get(name, 'accuracy')
  labels = {'mnli': ('contradiction', 'entailment', 'neutral'), 'stsb': ()} | dict.fromkeys(
    ('qnli', 'rte'), ('entailment', 'not_entailment')
  )
  assert (task.metric, task.labels) == (metric, labels.get(name, ('0', '1')))
  assert task.head == ('regression' if name == 'stsb' else 'classification')
  assert (task.recipe.epochs, task.recipe.max_length) == (10 if name in ('rte', 'stsb') else 3, 128)


def test_scores_are_those_of_glue():
  def score(name, gold, predicted):
    task = TASKS.get(name).restore({'name': name}, None)
    outputs = {'value': np.array(predicted) / 5} if name == 'stsb' else logits(task, predicted)
    return task.score('dev', [Example(None, 'a', 'b', target) for target in gold], None, outputs)

  gold, predicted = [1, 1, 1, 0, 0, -1], [1, 1, 0, 1, 0, 0]  # the last has no label
  assert score('mrpc', gold, predicted) == pytest.approx(
    {'accuracy': 3 / 5, 'f1': 2 / 3, 'glue': (3 / 5 + 2 / 3) / 2}
  )
  assert score('cola', gold, predicted) == pytest.approx({'matthews': (2 - 1) / 6, 'glue': 1 / 6})
  assert score('sst2', gold, predicted) == pytest.approx({'accuracy': 3 / 5, 'glue': 3 / 5})
  assert score('qqp', gold, predicted).keys() == {'accuracy', 'f1', 'glue'}
  metrics = score('stsb', [0.0, 1.0, 2.0, math.nan], [1.0, 2.0, 4.0, 9.0])
  assert metrics == pytest.approx(
    {'pearson': 3 / math.sqrt(2 * 14 / 3), 'spearman': 1.0, 'glue': (1 + 3 / math.sqrt(28 / 3)) / 2}
  )
  assert math.isnan(score('stsb', [0.0, 1.0], [2.0, 2.0])['glue'])


def test_score_of_a_constant_answer(folder):
  assert finetune_files.opened('cola', source=folder).constant() == {'matthews': 0.0, 'glue': 0.0}
  assert finetune_files.opened('qqp', source=folder).constant() == {
    'accuracy': 1.0,
    'f1': 0.0,
    'glue': 0.5,
  }
  (folder / 'STS-B/dev.tsv').write_text(
    FILES['STS-B/dev.tsv'] + '1\tg\tf\t2012\t2\tn\tn\tA.\tB.\t1.000\n'
  )
  assert finetune_files.opened('stsb', source=folder).constant() == {
    'pearson': 0.0,
    'spearman': 0.0,
    'glue': 0.0,
  }


def test_values_of_stsb_are_scaled_to_0_and_1(folder):
  from electra_jax.data.tokenizers.tokenization import load_tokenizer

  (folder / 'vocab.txt').write_text(
    '\n'.join(
      ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'a', 'plane', 'jet', 'hat', 'car', '.', '"']
    )
  )
  task = finetune_files.opened('stsb', source=folder)
  features, counts = task.features(
    task.examples('train'), load_tokenizer(folder / 'vocab.txt'), 128
  )
  assert features.targets['value'].dtype == np.float32 and features.targets['value'].tolist() == [
    0.75,
    0.0,
    0.75,
    0.0,
  ]
  assert features.token_ids[0].tolist() == [2, 5, 6, 10, 3, 5, 11, 7, 10, 3] and counts == {}
  features, _ = task.features(task.examples('test'), load_tokenizer(folder / 'vocab.txt'), 128)
  assert np.isnan(features.targets['value']).all()


@pytest.mark.parametrize('name', NAMES)
def test_submissions_have_the_format_of_the_site(folder, name):
  task = finetune_files.opened(name, source=folder)
  examples = task.examples('test')
  outputs = {'value': np.array([1.2])} if name == 'stsb' else logits(task, [1, 0][: len(examples)])
  last = {
    'stsb': ['5.000'],
    'qnli': ['not_entailment'],
    'rte': ['not_entailment'],
    'mnli': ['entailment'],
  }.get(name, ['1', '0'][: len(examples)])
  expected = ''.join(f'{i}\t{answer}\n' for i, answer in enumerate(last))
  assert task.submission('test', examples, None, outputs) == {
    TESTS[name][0]: f'index\tprediction\n{expected}'.encode()
  }
  assert task.submission('dev', task.examples('dev'), None, outputs) == {}
  if name == 'mnli':
    assert [
      *task.submission('test_mismatched', examples, None, outputs),
      *task.submission('diagnostic', examples, None, outputs),
    ] == ['MNLI-mm.tsv', 'AX.tsv']


@pytest.mark.parametrize('name', NAMES)
def test_a_restored_task_reads_original_files_and_plain_lines(folder, name):
  task = finetune_files.restored(finetune_files.opened(name, source=folder))
  own = next(path for path in folder.iterdir() if path.name.lower().replace('-', '') == name)
  split = 'dev_matched' if name == 'mnli' else 'dev'
  assert contents(task.read(str(own / f'{split}.tsv'))) == EXPECTED[name][1]
  assert [
    (e.first, e.second)
    for e in task.read(str(own / ('test_matched.tsv' if name == 'mnli' else 'test.tsv')))
  ] == TESTS[name][1]
  plain = folder / 'plain.txt'
  plain.write_text('One "text.\tAnother.\n')
  expected = (
    ('One "text.', 'Another.') if name not in ('cola', 'sst2') else ('One "text.\tAnother.', None)
  )
  assert [(e.first, e.second) for e in task.read(str(plain))] == [expected]
  with pytest.raises(UserError, match='has no dev data'):
    task.examples('dev')


@pytest.mark.parametrize(
  'path, content, name, split, expected',
  [
    (
      'SST-2/train.tsv',
      'sentence\tlabel\ngood\t1\nbad\t2\n',
      'sst2',
      'train',
      "line 3 of the file '{}' has the label '2'; expected one of '0', '1'",
    ),
    (
      'SST-2/train.tsv',
      'sentence\tlabel\ngood\t\n',
      'sst2',
      'train',
      "line 2 of the file '{}' has no label: its column 'label' is empty",
    ),
    (
      'SST-2/train.tsv',
      'sentences\tlabel\ngood\t1\n',
      'sst2',
      'train',
      "the file '{}' has no column 'sentence' (did you mean 'sentences'?)",
    ),
    (
      'RTE/dev.tsv',
      'index\tsentence1\tsentence2\n0\ta\tb\n',
      'rte',
      'dev',
      "the file '{}' has no column 'label'; its columns are 'index', 'sentence1'",
    ),
    ('RTE/dev.tsv', '', 'rte', 'dev', "the file '{}' is empty"),
    (
      'RTE/dev.tsv',
      'index\tsentence1\tsentence2\tlabel\n',
      'rte',
      'dev',
      "the file '{}' has no rows",
    ),
    (
      'STS-B/dev.tsv',
      f'{STS}\tscore\n0\tg\tf\t2012\t1\tn\tn\tA.\tB.\thigh\n',
      'stsb',
      'dev',
      "line 2 of the file '{}' has the value 'high'; expected a number",
    ),
    (
      'STS-B/dev.tsv',
      f'{STS}\tscore\n0\tg\tf\t2012\t1\tn\tn\tA.\tB.\t5.2\n',
      'stsb',
      'dev',
      "line 2 of the file '{}' has the value 5.2; expected one from 0 to 5",
    ),
    (
      'CoLA/train.tsv',
      'gj04\t1\t\tFine.\ngj04\t1\tFine.\n',
      'cola',
      'train',
      "line 2 of the file '{}' has 3 fields; expected 4",
    ),
  ],
)
def test_errors_name_their_place(folder, path, content, name, split, expected):
  (folder / path).write_text(content)
  assert expected.format(folder / path) in message(name, folder, split)


def test_missing_data_is_an_error(folder):
  assert "the task 'rte' has no data; set config.data.source to the folder of GLUE" in message(
    'rte', ''
  )
  assert 'the folder does not exist or is empty' in message('rte', folder / 'nosuch')
  assert 'it contains neither a folder QNLI nor train.tsv' in message(
    'qnli', folder / 'MNLI/..' / 'diagnostic'
  )
  (folder / 'RTE/dev.tsv').unlink()
  assert "the task 'rte' has no dev data; it has 'train', 'test'" in message('rte', folder, 'dev')


def test_named_files_have_precedence_over_the_folder(folder):
  (folder / 'mine.tsv').write_text('sentence\tlabel\nmine\t0\n')
  task = finetune_files.opened('sst2', source=folder, dev=folder / 'mine.tsv')
  assert (
    contents(task.examples('dev')) == [('mine', None, 0)]
    and contents(task.examples('train')) == EXPECTED['sst2'][0]
  )
  assert finetune_files.opened('sst2', train=folder / 'mine.tsv').splits == ('train',)


BUILD = """
import sys
import numpy as np
import tensorflow_datasets as tfds

Config = tfds.core.BuilderConfig
class Glue(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version('2.0.0')
  BUILDER_CONFIGS = [Config(name=name) for name in ('cola', 'stsb', 'mnli', 'ax')]
  NLI = ['entailment', 'neutral', 'contradiction']

  def _info(self):
    name, texts = self.builder_config.name, ('premise', 'hypothesis')
    label = tfds.features.ClassLabel(names=self.NLI)
    if name == 'cola':
      texts, label = ('sentence',), tfds.features.ClassLabel(names=['unacceptable', 'acceptable'])
    if name == 'stsb':
      texts, label = ('sentence1', 'sentence2'), np.float32
    features = {text: tfds.features.Text() for text in texts} | {'label': label, 'idx': np.int32}
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, downloads):
    name = self.builder_config.name
    ends = ('_matched', '_mismatched') if name == 'mnli' else ('',)
    splits = [f'{part}{end}' for part in ('validation', 'test') for end in ends]
    splits = ['test'] if name == 'ax' else ['train', *splits]
    return {split: self._generate_examples(split) for split in splits}

  def _generate_examples(self, split):
    for i in range(20):
      names = [name for name in self.info.features if name not in ('label', 'idx')]
      texts = {name: f'{split} {name} {i}' for name in names}
      yield i, texts | {'label': -1 if 'test' in split else i % 2, 'idx': i}

for name in ('cola', 'stsb', 'mnli', 'ax'):
  Glue(config=name, data_dir=sys.argv[1], file_format='array_record').download_and_prepare()
"""


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tfds')
  done = subprocess.run(
    [sys.executable, '-c', BUILD, str(folder)],
    capture_output=True,
    text=True,
    cwd=REPOSITORY,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
  )
  assert done.returncode == 0, done.stderr
  return folder


@pytest.mark.parametrize('name', ['cola', 'stsb', 'mnli'])
def test_tfds_data_has_the_order_of_the_original_files(data_dir, name):
  task = finetune_files.opened(name, source=f'tfds:glue;data_dir={data_dir}')
  first, second = {
    'cola': ('sentence', None),
    'stsb': ('sentence1', 'sentence2'),
    'mnli': ('premise', 'hypothesis'),
  }[name]
  places = {'cola': [0, 1], 'stsb': [0.0, 1.0], 'mnli': [1, 2]}[name]  # entailment and neutral

  def expected(split):
    return [
      (f'{split} {first} {i}', f'{split} {second} {i}' if second else None, places[i % 2])
      for i in range(20)
    ]

  assert contents(task.examples('train'))[:20] == expected('train') and len(
    task.examples('train')
  ) == (40 if name == 'stsb' else 20)
  assert contents(task.examples('dev')) == expected(
    'validation_matched' if name == 'mnli' else 'validation'
  )
  assert (
    all(not example.target >= 0 for example in task.examples('test'))
    and len(task.examples('test')) == 20
  )
  if name == 'mnli':
    assert task.splits == (
      'train',
      'dev',
      'dev_mismatched',
      'test',
      'test_mismatched',
      'diagnostic',
    )
    assert task.examples('diagnostic')[19].first == 'test premise 19'
    assert contents(task.examples('dev_mismatched')) == expected('validation_mismatched')


def test_a_user_task_reads_tfds(data_dir):
  source = f'tfds:glue/cola;data_dir={data_dir}'
  task = finetune_files.opened(
    'classification',
    train=source,
    dev=f'{source};split=validation[:5]',
    test=f'{source};split=test',
    text='sentence',
  )
  assert task.labels == ('acceptable', 'unacceptable') and len(task.examples('train')) == 20
  assert (
    sorted(task.examples('dev')[0].first.split()[:2]) == ['sentence', 'validation']
    and len(task.examples('dev')) == 5
  )
  assert {example.target for example in task.examples('test')} == {-1}
  with pytest.raises(
    UserError,
    match="^'tfds:glue/cola.*' has no column 'texts'.*; its columns are 'idx', 'label', "
    "'sentence'; set data.text to one of them",
  ):
    finetune_files.opened('classification', train=source, text='texts')


def test_tfds_data_of_another_task_is_an_error(data_dir):
  source = f'tfds:glue/cola;data_dir={data_dir}'
  opened = functools.partial(finetune_files.opened, 'classification')
  assert "has the label 'unacceptable'; expected one of '0', '1'" in message('sst2', source)
  with pytest.raises(UserError, match="split 'train.:0.' of TFDS dataset glue/cola/2.0.0 "):
    opened(train=f'{source};split=train[:0]', text='sentence')
  with pytest.raises(
    UserError, match="has no split 'dev'; its splits are 'train', 'validation', 'test'"
  ):
    opened(train=f'{source};split=dev', text='sentence')
  assert 'is not prepared in' in message('rte', f'tfds:glue;data_dir={data_dir}')


@pytest.mark.skipif(not REAL.exists(), reason='needs ../shared/data/glue')
@pytest.mark.parametrize(
  'name, train, dev', [('cola', 8551, 1043), ('sst2', 67349, 872), ('stsb', 2 * 5749, 1500)]
)
def test_real_files_are_read_completely(name, train, dev):
  task = finetune_files.opened(name, source=REAL)
  assert (len(task.examples('train')), len(task.examples('dev'))) == (train, dev)
