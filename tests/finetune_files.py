"""Small synthetic data sets in the original formats of all tasks, and helpers to open tasks.

A word of each sentence determines its label.
"""

import json
import pathlib
import random

from electra_jax import registry
from electra_jax.config.finetuning import TaskDataConfig
from electra_jax.finetune import tasks

WORDS = 'bako timeru salo nipe dufa gibako rume tisalo nidufa pegi'.split()


def task_data(**fields) -> TaskDataConfig:
  """config.data with some fields set; paths may be Path objects."""
  plain = {n: str(v) if isinstance(v, pathlib.Path) else v for n, v in fields.items()}
  return TaskDataConfig().replace(plain)


def opened(name: str, **fields) -> tasks.Task:
  """A task with the data that these fields of config.data name."""
  return registry.TASKS.get(name).open(name, task_data(**fields), None)


def described(task: tasks.Task, **changes) -> dict:
  """What a run's folder records of a task, with changes."""
  return json.loads(json.dumps(task.describe())) | changes


def restored(task: tasks.Task, **changes) -> tasks.Task:
  """The task as a run's folder restores it, with changes to what the folder records."""
  return tasks.restore_task(described(task, **changes))


def sentences(count: int, seed: int) -> list[tuple[str, int]]:
  """Sentences and a label that one of their words determines."""
  rng = random.Random(seed)
  return [
    (' '.join(rng.choices(WORDS, k=rng.randint(2, 6)) + [['dufa', 'salo'][label]]), label)
    for label in (rng.randint(0, 1) for _ in range(count))
  ]


def lines(path: pathlib.Path, rows, header=None) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  text = ['\t'.join(map(str, row)) for row in ([header] if header else []) + list(rows)]
  path.write_text('\n'.join(text) + '\n', 'utf-8')


def glue(folder: pathlib.Path, train: int = 24, dev: int = 12, test: int = 6) -> pathlib.Path:
  """GLUE's nine tasks."""
  parts = {'train': sentences(train, 1), 'dev': sentences(dev, 2), 'test': sentences(test, 3)}
  for part, rows in parts.items():
    known = part != 'test'

    def last(label, known=known):
      return (label,) if known else ()

    name = f'{part}.tsv'
    if known:
      lines(folder / 'CoLA' / name, [('made', label, '', text) for text, label in rows])
    else:
      lines(
        folder / 'CoLA' / name,
        [(i, text) for i, (text, _) in enumerate(rows)],
        ('index', 'sentence'),
      )
    lines(
      folder / 'SST-2' / name,
      [(text, label) for text, label in rows]
      if known
      else [(i, text) for i, (text, _) in enumerate(rows)],
      ('sentence', 'label') if known else ('index', 'sentence'),
    )
    pairs = [
      (i, text, text[::-1] if label else 'bako', label) for i, (text, label) in enumerate(rows)
    ]
    lines(
      folder / 'MRPC' / name,
      [(*((label,) if known else (i,)), i, i, a, b) for i, a, b, label in pairs],
      ('Quality' if known else 'index', '#1 ID', '#2 ID', '#1 String', '#2 String'),
    )
    lines(
      folder / 'STS-B' / name,
      [(i, 'g', 'f', 'y', i, 's', 's', a, b, *last(5.0 * label)) for i, a, b, label in pairs],
      (
        'index',
        'genre',
        'filename',
        'year',
        'old_index',
        'source1',
        'source2',
        'sentence1',
        'sentence2',
        *last('score'),
      ),
    )
    lines(
      folder / 'QQP' / name,
      [(i, 2 * i, 2 * i + 1, a, b, label) if known else (i, a, b) for i, a, b, label in pairs],
      ('id', 'qid1', 'qid2', 'question1', 'question2', 'is_duplicate')
      if known
      else ('id', 'question1', 'question2'),
    )
    for task, first, second in (
      ('QNLI', 'question', 'sentence'),
      ('RTE', 'sentence1', 'sentence2'),
    ):
      lines(
        folder / task / name,
        [(i, a, b, *last(['entailment', 'not_entailment'][label])) for i, a, b, label in pairs],
        ('index', first, second, *last('label')),
      )
    lines(
      folder / 'WNLI' / name,
      [(i, a, b, *last(label)) for i, a, b, label in pairs],
      ('index', 'sentence1', 'sentence2', *last('label')),
    )
    middle = (
      'promptID',
      'pairID',
      'sentence1_binary_parse',
      'sentence2_binary_parse',
      'sentence1_parse',
      'sentence2_parse',
      'genre',
    )
    of_mnli = [
      (
        i,
        *['x'] * 6,
        'g',
        a,
        b,
        *(('neutral', ['contradiction', 'entailment'][label]) if known else ()),
      )
      for i, a, b, label in pairs
    ]
    header = (
      'index',
      *middle,
      'sentence1',
      'sentence2',
      *(('label1', 'gold_label') if known else ()),
    )
    for suffix in ('',) if part == 'train' else ('_matched', '_mismatched'):
      lines(folder / 'MNLI' / f'{part}{suffix}.tsv', of_mnli, header)
  return folder


def squad(folder: pathlib.Path, version: str) -> pathlib.Path:
  """SQuAD 1.1 or 2.0 with one question per context; in 2.0 every second one has no answer."""
  for part, count, seed in (('train', 16, 4), ('dev', 6, 5)):
    paragraphs = []
    for i, (context, _) in enumerate(sentences(count, seed)):
      possible = version == '1.1' or i % 2
      answer = context.split()[1]
      answers = [{'text': answer, 'answer_start': context.index(answer)}] if possible else []
      extra = {'is_impossible': not possible} if version == '2.0' else {}
      paragraphs.append(
        {
          'context': context,
          'qas': [{'id': f'{part}{i}', 'question': 'bako salo?', 'answers': answers, **extra}],
        }
      )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f'{part}-v{version}.json').write_text(
      json.dumps({'version': version, 'data': [{'title': 't', 'paragraphs': paragraphs}]})
    )
  return folder


def tagged(folder: pathlib.Path, kind: str) -> pathlib.Path:
  """Entities in two columns, chunks in three, or parts of speech as CoNLL-U; with a test file."""
  folder.mkdir(parents=True, exist_ok=True)
  for part, count, seed in (('train', 16, 6), ('dev', 8, 7), ('test', 4, 8)):
    blocks = []
    for text, _ in sentences(count, seed):
      words = text.split()
      tags = ['B-X' if word == 'dufa' else 'B-Y' if word == 'salo' else 'O' for word in words]
      if kind == 'ner':
        blocks.append('\n'.join(f'{word} {tag}' for word, tag in zip(words, tags, strict=True)))
      elif kind == 'chunking':
        blocks.append('\n'.join(f'{word} NN {tag}' for word, tag in zip(words, tags, strict=True)))
      else:
        blocks.append(
          '\n'.join(
            f'{i}\t{word}\t_\t{"NOUN" if tag == "O" else "VERB"}' + '\t_' * 6
            for i, (word, tag) in enumerate(zip(words, tags, strict=True), 1)
          )
        )
    (folder / f'{part}.{"conllu" if kind == "pos" else "conll"}').write_text(
      '\n\n'.join(blocks) + '\n\n'
    )
  return folder
