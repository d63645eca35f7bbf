"""A label for every word: entities (`ner`), `chunking`, parts of speech (`pos`), and one's own (`tagging`)."""

import collections
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from electra_jax import file_access
from electra_jax.data.corpus.readers import named
from electra_jax.data.tokenizers.tokenization import Tokenizer
from electra_jax.errors import UserError
from electra_jax.finetune import entities, metrics
from electra_jax.finetune.tasks import conll, tables
from electra_jax.finetune.tasks.conll import Layout, Sentence
from electra_jax.finetune.tasks.tables import place, shown
from electra_jax.finetune.tasks.task import FILL, Features, Outputs, Recipe

NAMES = ('ner', 'chunking', 'pos', 'tagging')
SPLITS = ('train', 'dev', 'test')
REPAIR = ('refuse', 'repair')
# What a file's name says, the first that it has: CoNLL-2003's parts are eng.train, eng.testa (for development) and eng.testb.
_PARTS = (
  ('testa', 'dev'),
  ('testb', 'test'),
  ('train', 'train'),
  ('dev', 'dev'),
  ('valid', 'dev'),
  ('test', 'test'),
)
_OTHER_FILES = re.compile(r'\.|license|readme|.*\.(md|pdf|py|sh|log|stats\.xml)$', re.IGNORECASE)


@dataclasses.dataclass(frozen=True, eq=False)
class Tagging:
  """A tagging task; see task.Task. Examples are conll.Sentence.

  Attributes:
    paths: the file of each part, by its name.
    ignore: entity types that count as O.
    repair: whether tags that break IOB2 are read as conlleval reads them, or refused.
  """

  name: str
  labels: tuple[str, ...]
  metric: str
  layout: Layout
  ignore: tuple[str, ...] = ()
  repair: bool = False
  paths: dict[str, str] = dataclasses.field(default_factory=dict)
  recipe: Recipe = Recipe(epochs=3.0, max_length=256)
  head: str = 'tagging'
  _read: dict[str, list[Sentence]] = dataclasses.field(default_factory=dict, repr=False)

  @property
  def splits(self) -> tuple[str, ...]:
    return tuple(self.paths)

  @property
  def types(self) -> tuple[str, ...]:
    """Of entities, in the order of the labels; () where tags are no entities'."""
    return (
      tuple(label[2:] for label in self.labels if label.startswith('B-'))
      if self.metric == 'f1'
      else ()
    )

  def examples(self, split: str) -> Sequence[Sentence]:
    """The sentences of a part, tags checked. Raises UserError: train or dev without tags, tags broken or unseen in training."""
    if split not in self.paths:
      raise UserError(f'there is no data for {split!r}; name a file with data.{split}')
    if split not in self._read:
      sentences = conll.read_sentences(self.paths[split], self.layout)
      if self.metric == 'f1':
        sentences = [_entity_tags(sentence, self.ignore, self.repair) for sentence in sentences]
      self._check(split, sentences)
      self._read[split] = sentences
    return self._read[split]

  def _check(self, split, sentences):
    for sentence in sentences:
      if sentence.tags is None and split != 'test':
        where = place(sentence.path, sentence.lines[0]) if sentence.lines else shown(sentence.path)
        raise UserError(
          f'{where} has no tags where data.tags and data.label say; training and dev data need them'
        )
      # A sentence of the test data may have no tags.
      for line, tag in zip(sentence.lines, sentence.tags or (), strict=False):
        if tag not in self.labels:
          raise UserError(
            f'{place(sentence.path, line)} has the tag {tag!r}, which the training data has not; it has {named(self.labels)}'
            + ('; types in data.ignore_labels count as O' if self.metric == 'f1' else '')
          )

  def read(self, path: str) -> Sequence[Sentence]:
    """Sentences of a person's file ('-': standard input), tagged or not, in any layout; else plain text, a sentence a line.

    Tags that the model does not know are found by `features`, and the sentence goes without.
    """
    kind = tables.format_of(path)
    if kind in ('jsonl', 'json', 'csv'):
      sentences = conll.read_sentences(path, dataclasses.replace(self.layout, format='auto'))
    else:
      lines = tables.read_lines(path)
      found = 'conllu' if kind == 'conllu' else conll.kind_of(lines)
      # Where training data were laid out otherwise, the name of their column means nothing.
      applies = self.layout.tags.lstrip('-').isdigit() == (found != 'conllu')
      layout = dataclasses.replace(
        self.layout, tags=self.layout.tags if applies else 'auto', auto=self.layout.auto or 'upos'
      )
      text = (
        (path == '-' or kind == 'txt')
        and found == 'columns'
        and not self._has_columns(lines, layout)
      )
      sentences = conll.plain(lines, path) if text else conll.of_lines(lines, path, layout, found)
    if not sentences:
      raise UserError(f'{shown(path)} holds no sentences; give a line at least')
    if self.metric == 'f1':
      sentences = [
        _entity_tags(sentence, self.ignore, True, refuse=False) for sentence in sentences
      ]
    return sentences

  def _has_columns(self, lines, layout):
    """Whether every line has several columns, one of them with a tag of ours."""
    try:
      sentences = conll.of_lines(lines[:200], '', layout, 'columns')
    except UserError:
      return False
    return all(
      sentence.tags
      and {*sentence.tags}
      <= {*self.labels, *(f'{mark}-{kind}' for kind in self.ignore for mark in 'BI')}
      for sentence in sentences
    )

  def features(
    self, examples: Sequence[Sentence], tokenizer: Tokenizer, max_length: int
  ) -> tuple[Features, dict[str, int]]:
    """Rows of words encoded one by one. Sentences that are too long go on in further rows, so that each word is in one row.

    A word's tag stands at its first token. A word of no token becomes [UNK]; one that no row could hold is cut.
    """
    if max_length < 3:
      raise UserError(
        f'max_length is {max_length}, and a row has [CLS], a word and [SEP]; set it to 3 at least'
      )
    ids, counts = _encoded_words(examples, tokenizer), collections.Counter()
    index = {label: i for i, label in enumerate(self.labels)}
    rows, tags, owners, notes = [], [], [], []
    for number, sentence in enumerate(examples):
      known = self._known(sentence)
      counts['sentences with tags that training did not have, read without'] += (
        sentence.tags is not None and not known
      )
      counts['tags repaired'] += sentence.repaired
      words = [ids[token][: max_length - 2] for token in sentence.tokens]
      counts['tokens of words too long for a row, cut off'] += sum(
        len(ids[token]) for token in sentence.tokens
      ) - sum(map(len, words))
      gold = np.array(
        [index[tag] for tag in sentence.tags] if known else [FILL['tags']] * len(words), np.int32
      )
      first = 0
      for last in _breaks([len(word) for word in words], max_length - 2):
        pieces = words[first:last]
        row = np.concatenate([[tokenizer.cls_id], *pieces, [tokenizer.sep_id]]).astype(np.int32)
        places = np.cumsum([1, *map(len, pieces)])[:-1].astype(np.int32)
        target = np.full(len(row), FILL['tags'], np.int32)
        target[places] = gold[first:last]
        rows.append(row)
        tags.append(target)
        owners.append(number)
        notes.append(places)
        counts['sentences too long for one row, in several'] += first == 0 and last < len(words)
        first = last
    return Features(rows, {'tags': tags}, np.array(owners, np.int32), notes), {
      name: count for name, count in counts.items() if count
    }

  def _known(self, sentence):
    return sentence.tags is not None and set(sentence.tags) <= set(self.labels)

  def score(
    self, split: str, examples: Sequence[Sentence], features: Features, outputs: Outputs
  ) -> dict[str, float]:
    """Of entities f1 (micro, conlleval's), precision, recall, f1_strict, f1/TYPE and accuracy; else accuracy and macro_f1, over words."""
    return self._figures(
      examples,
      [[self.labels[i] for i in chosen] for chosen, _ in self._chosen(examples, features, outputs)],
    )

  def _figures(self, examples, predicted):
    pairs = [
      (sentence.tags, tags)
      for sentence, tags in zip(examples, predicted, strict=True)
      if self._known(sentence)
    ]
    if not pairs:
      raise UserError('there are no tags to compare with; give tagged data')
    gold, predicted = zip(*pairs, strict=True)
    flat = [np.array([tag for tags in side for tag in tags]) for side in (gold, predicted)]
    if self.metric == 'f1':
      return entities.figures(gold, predicted, self.types) | {'accuracy': metrics.accuracy(*flat)}
    return {'accuracy': metrics.accuracy(*flat), 'macro_f1': metrics.macro_f1(*flat)}

  def _chosen(self, examples, features, outputs):
    """Of each sentence the likeliest label of every word and its probability."""
    labels, chances = [[] for _ in examples], [[] for _ in examples]
    for owner, places, logits in zip(
      features.examples, features.notes, outputs['logits'], strict=True
    ):
      logits = np.asarray(logits, np.float64)[places]
      best = logits.argmax(-1)
      labels[owner].append(best)
      chances[owner].append(1 / np.exp(logits - logits.max(-1, keepdims=True)).sum(-1))
    return [(np.concatenate(a), np.concatenate(b)) for a, b in zip(labels, chances, strict=True)]

  def predictions(
    self, examples: Sequence[Sentence], features: Features, outputs: Outputs
  ) -> list[dict]:
    """`tokens`, `tags`, `probabilities` (of those tags), and of entities `entities`: type, first word, the word after the last, text."""
    result = []
    for sentence, (chosen, chances) in zip(
      examples, self._chosen(examples, features, outputs), strict=True
    ):
      tags = [self.labels[i] for i in chosen]
      row = ({'id': sentence.id} if sentence.id else {}) | {
        'tokens': list(sentence.tokens),
        'tags': tags,
        'probabilities': chances.round(6).tolist(),
      }
      if self.metric == 'f1':
        row['entities'] = [
          {'type': kind, 'start': start, 'end': end, 'text': ' '.join(sentence.tokens[start:end])}
          for kind, start, end in entities.entities(tags)
        ]
      result.append(row)
    return result

  def submission(
    self, split: str, examples: Sequence[Sentence], features: Features, outputs: Outputs
  ) -> dict[str, bytes]:
    """Columns `word gold predicted`, which conlleval reads."""
    return {
      f'{self.name}-{split}.conll': conll.to_columns(
        examples,
        (
          [self.labels[i] for i in chosen]
          for chosen, _ in self._chosen(examples, features, outputs)
        ),
      )
    }

  def constant(self) -> dict[str, float]:
    """What giving every word the most frequent training tag scores on dev; {} where there is no dev data."""
    if 'dev' not in self.paths:
      return {}
    most = collections.Counter(
      tag for sentence in self.examples('train') for tag in sentence.tags
    ).most_common(1)[0][0]
    return self._figures(
      self.examples('dev'), [[most] * len(sentence.tokens) for sentence in self.examples('dev')]
    )

  def describe(self) -> dict:
    return {
      'name': self.name,
      'labels': list(self.labels),
      'metric': self.metric,
      'layout': dataclasses.asdict(self.layout),
      'ignore': list(self.ignore),
      'repair': self.repair,
    }


def open_task(name: str, data: Any) -> Tagging:
  """The task `name` of NAMES on the files of `config.data`; its labels are read off the training data.

  Fields of data besides task.py's: `ignore_labels`, entity types that count as O, between commas; `repair_tags`, what becomes of tags
  that break IOB2 (IOB1's and IOBES's do): 'refuse' them, or 'repair' them to what conlleval reads.

  Raises UserError where there is no training data, it has no tags, or a field is wrong.
  """
  ignore = tuple(
    part.strip() for part in getattr(data, 'ignore_labels', '').split(',') if part.strip()
  )
  repair = getattr(data, 'repair_tags', 'refuse')
  if repair not in REPAIR:
    raise UserError(f'data.repair_tags is {repair!r}; it is one of {", ".join(REPAIR)}')
  layout = Layout(
    data.format,
    str(data.tags),
    data.text,
    data.label,
    auto='upos' if name in ('pos', 'tagging') else '',
  )
  task = Tagging(
    name,
    (),
    'accuracy' if name == 'pos' else 'f1',
    layout,
    ignore,
    repair == 'repair',
    _files(data),
  )
  if 'train' not in task.paths:
    raise UserError(
      'there is no training data; name a file with data.train, or a folder with data.source'
    )
  sentences = conll.read_sentences(task.paths['train'], layout)
  found = {tag for sentence in sentences for tag in sentence.tags or ()}
  if name == 'tagging' and (
    entities.repaired(sorted(found)) if task.repair else all(map(entities.is_entity_tag, found))
  ) in (None, False):
    task = dataclasses.replace(task, metric='accuracy')
  if task.metric == 'f1':
    types = {tag[2:] for tag in found} - {''}
    if missing := [kind for kind in ignore if kind not in types]:
      raise UserError(
        f'data.ignore_labels names {missing[0]!r}, an entity type that the training data has not; its types are {named(sorted(types))}'
      )
    sentences = [_entity_tags(sentence, ignore, task.repair) for sentence in sentences]
    kinds = sorted({tag[2:] for sentence in sentences for tag in sentence.tags or ()} - {''})
    labels = (
      'O',
      *(f'{mark}-{kind}' for kind in kinds for mark in 'BI'),
    )  # both marks, though training may have one alone
  elif ignore:
    raise UserError(
      f'data.ignore_labels is of tasks of entities, and {name} here is none; leave it out'
    )
  else:
    labels = tuple(sorted(found, key=lambda tag: (tag != 'O', tag)))
  task = dataclasses.replace(task, labels=labels)
  task._check('train', sentences)
  task._read['train'] = sentences
  return task


def define(name: str, data: Any, labels: tuple[str, ...]) -> Tagging:
  """As tasks.define_task has it. Raises UserError where a task of entities gets labels that are none's."""
  layout = Layout(
    data.format,
    str(data.tags),
    data.text,
    data.label,
    auto='upos' if name in ('pos', 'tagging') else '',
  )
  of_entities = all(map(entities.is_entity_tag, labels)) and set(labels) != {'O'}
  if name in ('ner', 'chunking') and not of_entities:
    raise UserError(
      f'{name} is about entities (O, B-TYPE, I-TYPE), and the labels of the model are {named(labels)}; set --config.task=tagging, or pos.'
    )
  ignore = tuple(part.strip() for part in data.ignore_labels.split(',') if part.strip())
  return Tagging(
    name,
    labels,
    'f1' if of_entities and name != 'pos' else 'accuracy',
    layout,
    ignore,
    data.repair_tags == 'repair',
    _files(data),
  )


def restore(description: dict) -> Tagging:
  """The task that `describe` told of, without its data."""
  d = description
  return Tagging(
    d['name'],
    tuple(d['labels']),
    d['metric'],
    Layout(**d['layout']),
    tuple(d['ignore']),
    d['repair'],
  )


def _files(data):
  """The file of each part: as named, else the one in the folder data.source whose name says so."""
  given = {split: path for split in SPLITS if (path := getattr(data, split))}
  if not data.source:
    return given
  if data.source.startswith('tfds:') or not file_access.is_folder(data.source):
    raise UserError(
      f'data.source {data.source!r} is not a folder; tags are read from files: name a folder, or files with data.train, '
      'data.dev and data.test'
    )
  found = collections.defaultdict(list)
  names = [name for name in file_access.listing(data.source) if not _OTHER_FILES.match(name)]
  for name in names:
    if (
      part := next((part for mark, part in _PARTS if mark in name.lower()), None)
    ) and not file_access.is_folder(file_access.join(data.source, name)):
      found[part].append(name)
  for part in SPLITS:
    # A Universal Dependencies folder has the plain text of each part beside it.
    found[part] = [name for name in found[part] if tables.format_of(name) == 'conllu'] or found[
      part
    ]
    if part not in given and len(found[part]) > 1:
      raise UserError(
        f'the folder {data.source!r} has several files for {part}: {named(found[part])}; name one with data.{part}'
      )
  if not given and not any(found.values()):
    raise UserError(
      f'the folder {data.source!r} has no file whose name has train, dev or test in it; name files with data.train and data.dev'
    )
  return {
    split: given.get(split) or file_access.join(data.source, found[split][0])
    for split in SPLITS
    if split in given or found[split]
  }


def _entity_tags(sentence, ignore, repair, refuse=True):
  """The sentence with types to be ignored as O, and tags that keep to IOB2. Raises UserError where they break it, and are to be refused."""
  if sentence.tags is None:
    return sentence
  tags = (
    tuple('O' if tag[2:] in ignore and tag[1:2] == '-' else tag for tag in sentence.tags)
    if ignore
    else sentence.tags
  )
  fault = entities.first_fault(tags)
  if fault is None:
    return sentence._replace(tags=tags)
  mended = entities.repaired(tags) if repair else None
  if mended is not None:
    return sentence._replace(tags=tuple(mended), repaired=sum(map(str.__ne__, tags, mended)))
  if not refuse:
    return sentence
  where, tag = place(sentence.path, sentence.lines[fault]), tags[fault]
  if not re.fullmatch('[IES]-.+', tag):
    raise UserError(
      f"{where} has the tag {tag!r}, which is no entity's (O, B-TYPE or I-TYPE); name the column of the tags with data.tags, "
      'or the task tagging or pos'
    )
  before = repr(tags[fault - 1]) if fault else 'the beginning'
  raise UserError(
    f'{where} has the tag {tag!r} after {before}, which breaks IOB2; mend it, or set data.repair_tags=repair to read it '
    'as conlleval does'
  )


def _encoded_words(examples, tokenizer):
  """Ids of each different word: of one that comes to nothing [UNK]."""
  words = list(dict.fromkeys(token for sentence in examples for token in sentence.tokens))
  unknown = np.array([tokenizer.unk_id], np.int32)
  return {
    word: ids if len(ids) else unknown
    for word, ids in zip(words, tokenizer.encode_arrays(words), strict=True)
  }


def _breaks(lengths, room):
  """Where rows of at most `room` tokens end, in words; one row where there is no word."""
  ends, used = [], 0
  for i, length in enumerate(lengths):
    if used + length > room:
      ends.append(i)
      used = 0
    used += length
  return [*ends, len(lengths)]
