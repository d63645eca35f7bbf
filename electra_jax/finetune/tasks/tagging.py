"""A label per word: entities (`ner`, `chunking`), parts of speech (`pos`), and any (`tagging`)."""

import collections
import dataclasses
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from electra_jax.config.finetuning import TaskDataConfig
from electra_jax.data.corpus.readers import named
from electra_jax.data.tokenizers.tokenization import Tokenizer
from electra_jax.errors import UserError
from electra_jax.finetune import entities, task_metrics
from electra_jax.finetune.report_blocks import Blocks
from electra_jax.finetune.tasks import (
  arrow_tables,
  conll,
  tables,
  tag_schemes,
  tagged_files,
  tagging_reports,
)
from electra_jax.finetune.tasks.conll import Sentence, SentenceLayout
from electra_jax.finetune.tasks.tables import place, shown
from electra_jax.finetune.tasks.tag_schemes import Detected, TagCoding
from electra_jax.finetune.tasks.task import (
  TARGET_PADDING,
  ChooseDev,
  Features,
  Options,
  Outputs,
  SplitKey,
  TaskDefaults,
  TaskRecipe,
  parted,
  plain_text,
)


@dataclasses.dataclass(frozen=True)
class TaggingSpec:
  """A kind of tagging task; see `task.TaskSpec`.

  Attributes:
    entities: whether tags mark entities (O, B-TYPE, I-TYPE), scored by F1 over entities; else words
      are scored by accuracy. None: entities where all tags are such tags.
    conllu_tags: the column or key of the tags in CoNLL-U; '' where data.tags must be set.
    fields: usual names of the tags in JSON, Parquet and Arrow.
  """

  entities: bool | None
  conllu_tags: str = ''
  fields: tuple[str, ...] = ()
  head: str = 'tagging'
  fixed_labels: bool = False
  published_metric: str = ''

  def open(self, name: str, data: TaskDataConfig, options: Options = None) -> 'TaggingTask':
    """Opens the task; its labels are those of the training data.

    Args:
      name: of the task.
      data: config.data: source, a folder, or train, dev and test; format, tags, text, label,
        ignore_labels and repair_tags.
      options: none.

    Raises:
      UserError: there is no training data, it has no tags, or a field is wrong.
    """
    task = self._task(name, data, 'accuracy' if self.entities is False else 'f1')
    if 'train' not in task.paths:
      raise UserError(
        f'the task {name!r} has no training data; set data.train to a file, or data.source to a '
        'folder'
      )
    columns: dict[str, str | None] = {}
    read = {
      split: conll.read_sentences(path, task.layout, columns if split == 'train' else None)
      for split, path in task.paths.items()
    }
    task = self._with_coding(task, read, data.tag_scheme)
    found = {tag for sentence in read['train'] for tag in sentence.tags or ()}
    if task.metric == 'f1':
      labels = _entity_labels(task, read['train'])
    elif task.ignore:
      raise UserError(
        f'data.ignore_labels is {data.ignore_labels!r}, which requires tags of entities; {name} '
        'here has other tags: remove it'
      )
    elif len(found) == 1:
      raise UserError(f'the training data has a single tag, {min(found)!r}; expected at least two')
    else:
      labels = tuple(sorted(found, key=lambda tag: (tag != 'O', tag)))
    task = dataclasses.replace(task, labels=labels, notes=_notes(task, columns), unread=read)
    task.examples('train')
    return task

  def _with_coding(
    self, task: 'TaggingTask', read: Mapping[str, Sequence[Sentence]], scheme: str
  ) -> 'TaggingTask':
    """The task with how its data marks entities, which tags of all splits decide."""
    if self.entities is False:
      return task
    sequences = [s.tags for sentences in read.values() for s in sentences if s.tags is not None]
    found = {tag for tags in sequences for tag in tags}
    detected = tag_schemes.detect(sequences, scheme, task.ignore, self.entities is True)
    if self.entities is None and not _marks_entities(detected, found):
      return dataclasses.replace(task, metric='accuracy')
    coding = detected.coding if detected else tag_schemes.IOB2
    of_texts = any(s.offsets and s.tags is not None for s in read.get('train', ()))
    return dataclasses.replace(task, coding=coding, of_texts=of_texts)

  def define(
    self, name: str, data: TaskDataConfig, options: Options, labels: tuple[str, ...]
  ) -> 'TaggingTask':
    """The task for a model of another program, with its labels; see `task.TaskSpec`."""
    coding = tag_schemes.coding_of_labels(labels)
    mark_entities = coding is not None and (bool(coding.separator) or len(labels) > 2)
    if self.entities and not mark_entities:
      raise UserError(
        f'the labels of the model are {named(labels)}, and {name} requires tags of entities (O, '
        'B-TYPE, I-TYPE); set --config.task=tagging, or pos.'
      )
    by_entity = mark_entities and self.entities is not False
    task = self._task(name, data, 'f1' if by_entity else 'accuracy')
    if not by_entity or coding is None:
      return dataclasses.replace(task, labels=labels)
    task = dataclasses.replace(task, labels=labels, coding=coding, model_coding=coding)
    read = {split: conll.read_sentences(path, task.layout) for split, path in task.paths.items()}
    if not any(s.tags is not None for sentences in read.values() for s in sentences):
      return task
    task = self._with_coding(task, read, data.tag_scheme)
    return dataclasses.replace(task, unread=read)

  def restore(self, description: Mapping[str, Any], options: Options = None) -> 'TaggingTask':
    """The task of a description, without data."""
    return TaggingTask(
      name=description['name'],
      labels=tuple(description['labels']),
      metric=description['metric'],
      layout=SentenceLayout(**description['layout']),
      ignore=tuple(description['ignore']),
      repair=description['repair'],
      coding=TagCoding(**description.get('coding', {})),
      model_coding=TagCoding(**description.get('model_coding', {})),
      of_texts=description.get('of_texts', False),
    )

  def _task(self, name: str, data: TaskDataConfig, metric: str) -> 'TaggingTask':
    parts = (part.strip() for part in data.ignore_labels.split(','))
    return TaggingTask(
      name=name,
      labels=(),
      metric=metric,
      layout=SentenceLayout(
        data.format,
        str(data.tags),
        data.text,
        data.label,
        auto=self.conllu_tags,
        names=tables.label_names(data.label_names),
        fields=self.fields,
        plain_integers=not self.entities,
      ),
      ignore=tuple(part for part in parts if part),
      repair=data.repair_tags == 'repair',
      paths=tagged_files.split_paths(data),
    )


NER = TaggingSpec(entities=True, fields=('ner_tags', 'ner'))
CHUNKING = TaggingSpec(entities=True, fields=('chunk_tags', 'chunks'))
POS = TaggingSpec(entities=False, conllu_tags='upos', fields=('pos_tags', 'upos', 'pos', 'xpos'))
TAGGING = TaggingSpec(
  entities=None, conllu_tags='upos', fields=('ner_tags', 'pos_tags', 'chunk_tags', 'upos')
)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TaggingTask(TaskDefaults):
  """A tagging task; see `task.Task`. Examples are sentences (`conll.Sentence`).

  Attributes:
    name: as in config.task.
    labels: in the order of the logits.
    metric: 'f1' over entities, or 'accuracy' over words.
    layout: of the training data.
    ignore: entity types that count as O.
    repair: whether tags that violate their scheme are read as conlleval reads them; else they are
      an error.
    coding: how tags of entities are written in the data, and in predictions. Sentences have IOB2.
    model_coding: how the labels are written: IOB2, unless another program trained the model.
    of_texts: whether the data has entities by characters of texts.
    notes: see `task.Task`.
    paths: the file of each split.
    unread: sentences as read, of splits whose tags are not yet checked.
  """

  name: str
  labels: tuple[str, ...]
  metric: str
  layout: SentenceLayout
  ignore: tuple[str, ...] = ()
  repair: bool = False
  coding: TagCoding = tag_schemes.IOB2
  model_coding: TagCoding = tag_schemes.IOB2
  of_texts: bool = False
  notes: tuple[str, ...] = ()
  unread: dict[str, list[Sentence]] = dataclasses.field(default_factory=dict, repr=False)
  paths: dict[str, str] = dataclasses.field(default_factory=dict)
  recipe: TaskRecipe = TaskRecipe(epochs=3.0, max_length=256)
  head: str = 'tagging'
  cache: dict[str, list[Sentence]] = dataclasses.field(default_factory=dict, repr=False)

  @property
  def splits(self) -> tuple[str, ...]:
    """The splits that have data."""
    return tuple(self.paths)

  @property
  def types(self) -> tuple[str, ...]:
    """The entity types, in the order of the labels; () for tags that do not mark entities."""
    if self.metric != 'f1':
      return ()
    kinds = [parts[1] for label in self.labels if (parts := self.model_coding.parts(label))]
    return tuple(dict.fromkeys(filter(None, kinds)))

  def examples(self, split: str) -> Sequence[Sentence]:
    """The sentences of a split, their tags checked.

    Raises:
      UserError: train or dev has no tags, or tags are malformed or do not occur in training.
    """
    if split not in self.paths:
      raise UserError(f'the task {self.name!r} has no {split} data; set data.{split} to a file')
    if split not in self.cache:
      sentences = self.unread.pop(split, None)
      if sentences is None:
        sentences = conll.read_sentences(self.paths[split], self.layout)
      if self.metric == 'f1':
        sentences = [self._in_iob2(sentence, self.repair) for sentence in sentences]
      self.check_tags(split, sentences)
      self.cache[split] = sentences
    return self.cache[split]

  def split_off(self, choose: ChooseDev) -> 'TaggingTask':
    """The task with some training sentences as dev, equal ones on one side."""
    sentences = self.examples('train')
    keys = [SplitKey(tuple(map(plain_text, sentence.tokens))) for sentence in sentences]
    parts = parted(sentences, choose(keys))
    others = {split: path for split, path in self.paths.items() if split != 'train'}
    paths = {'train': self.paths['train'], 'dev': self.paths['train']} | others
    return dataclasses.replace(self, paths=paths, cache={**self.cache, **parts})

  def check_tags(self, split: str, sentences: Iterable[Sentence]) -> None:
    """Checks that sentences have tags, except in test data, and that training has these tags.

    Args:
      split: that the sentences are of.
      sentences: of the split.

    Raises:
      UserError: a tag is missing or unknown.
    """
    for sentence in sentences:
      if sentence.tags is None and split != 'test':
        lines = sentence.lines
        where = place(sentence.path, lines[0]) if lines else shown(sentence.path)
        raise UserError(
          f'{where} has no tags, which training and dev data require; set data.tags or data.label'
        )
      labels = self._model_tags(sentence.tags or ())
      wrong = next((i for i, label in enumerate(labels) if label not in self.labels), None)
      if wrong is not None:
        tag = self._written(sentence.tags or ())[wrong]
        ignored = '; types in data.ignore_labels count as O' if self.metric == 'f1' else ''
        raise UserError(
          f'{place(sentence.path, sentence.lines[wrong])} has the tag {tag!r}, which does not '
          f'occur in the training data; expected one of {named(self.labels)}{ignored}'
        )

  def _model_tags(self, tags: Sequence[str]) -> Sequence[str]:
    """Tags of a sentence as the model's labels are written."""
    if self.metric != 'f1' or self.model_coding == tag_schemes.IOB2:
      return tags
    return self.model_coding.encoded(entities.entities(tags), len(tags))

  def _written(self, tags: Sequence[str]) -> list[str]:
    """Tags of a sentence as the data writes them."""
    if self.metric != 'f1' or self.coding == tag_schemes.IOB2:
      return list(tags)
    return self.coding.encoded(entities.entities(tags), len(tags))

  def _in_iob2(self, sentence: Sentence, repair: bool, refuse: bool = True) -> Sentence:
    """A sentence as read, with tags in IOB2 and without ignored types.

    Args:
      sentence: as read.
      repair: whether tags that violate the scheme are read as conlleval reads them.
      refuse: whether tags that are still wrong are an error; else they are kept.

    Raises:
      UserError: a tag is wrong.
    """
    if sentence.tags is None:
      return sentence
    # Entities of texts are in IOB2 already.
    coding = tag_schemes.IOB2 if sentence.offsets else self.coding
    tags = coding.without(sentence.tags, self.ignore)
    fault = coding.fault(tags)
    if fault is not None and not (repair and all(map(coding.parts, tags))):
      if refuse:
        raise _wrong_tag(sentence, tags, fault, coding)
      return sentence
    if coding == tag_schemes.IOB2 and fault is None:
      return sentence._replace(tags=tags)
    spans = coding.spans(tags)
    changed = sum(map(str.__ne__, tags, coding.encoded(spans, len(tags))))
    found = tag_schemes.IOB2.encoded(spans, len(tags))
    return sentence._replace(tags=tuple(found), repaired=changed)

  def read(self, path: str) -> Sequence[Sentence]:
    """Sentences in any layout, tagged or not, or plain text with one sentence per line.

    A sentence with tags that the model does not have is kept; `features` drops its tags.

    Args:
      path: '-' for standard input.

    Raises:
      UserError: the file cannot be read or has no sentences.
    """
    kind = tables.format_from_name(path)
    if kind in ('jsonl', 'json', 'csv') or arrow_tables.is_arrow_data(path):
      sentences = conll.read_sentences(path, dataclasses.replace(self.layout, format='auto'))
    else:
      sentences = self._read_columns(path, kind)
    if not sentences:
      raise UserError(f'{shown(path)} has no sentences; expected at least one line')
    if self.metric == 'f1':
      sentences = [self._in_iob2(sentence, repair=True, refuse=False) for sentence in sentences]
    return sentences

  def read_labeled(self, path: str) -> tuple[Sequence[Sentence], collections.Counter[str]]:
    """Sentences as of `read`, and the number of sentences by tag that the model does not have."""
    sentences = self.read(path)
    found = (set(sentence.tags or ()) - set(self.labels) for sentence in sentences)
    return sentences, collections.Counter(tag for tags in found for tag in tags)

  def _read_columns(self, path: str, kind: str) -> list[Sentence]:
    lines = tables.read_lines(path)
    found = 'conllu' if kind == 'conllu' else conll.layout_of_lines(lines)
    # The column of the training data has no meaning in a file of another layout.
    applies = self.layout.tags.lstrip('-').isdigit() == (found != 'conllu')
    layout = dataclasses.replace(
      self.layout, tags=self.layout.tags if applies else 'auto', auto=self.layout.auto or 'upos'
    )
    maybe_text = (path == '-' or kind == 'txt') and found == 'columns'
    if maybe_text and not self._has_columns(lines, layout):
      return conll.plain_sentences(lines, path)
    return conll.sentences_of_lines(lines, path, layout, found)

  def _has_columns(self, lines: Sequence[str], layout: SentenceLayout) -> bool:
    """Whether every line has several columns, one of them with a tag of the task."""
    try:
      sentences = conll.sentences_of_lines(lines[:200], '', layout, 'columns')
    except UserError:
      return False
    return all(sentence.tags and all(map(self._is_known, sentence.tags)) for sentence in sentences)

  def _is_known(self, tag: str) -> bool:
    """Whether a tag, as the data writes it, is one of the task or of an ignored type."""
    if self.metric != 'f1':
      return tag in self.labels
    parts = self.coding.parts(tag)
    return parts is not None and parts[1] in ('', *self.types, *self.ignore)

  def features(
    self, examples: Sequence[Sentence], tokenizer: Tokenizer, max_length: int
  ) -> tuple[Features, dict[str, int]]:
    """Rows of words that are encoded one by one.

    A sentence that is too long is continued in further rows, so that each word is in one row. A
    word's tag is the target of its first token. A word without tokens becomes [UNK]; one that no
    row can hold is truncated.
    """
    if max_length < 3:
      raise UserError(
        f'config.max_length is {max_length}; expected at least 3, for [CLS], a word and [SEP]'
      )
    ids = _encoded_words(examples, tokenizer)
    index = {label: i for i, label in enumerate(self.labels)}
    counts: collections.Counter[str] = collections.Counter()
    rows: list[np.ndarray] = []
    tags: list[np.ndarray] = []
    owners: list[int] = []
    notes: list[np.ndarray] = []
    for number, sentence in enumerate(examples):
      known = self._has_known_tags(sentence)
      words = [ids[token][: max_length - 2] for token in sentence.tokens]
      whole = sum(len(ids[token]) for token in sentence.tokens)
      unknown = sentence.tags is not None and not known
      counts['sentences with unknown tags, read without tags'] += unknown
      counts['tags repaired'] += sentence.repaired
      counts['entities that began or ended inside a word, extended to it'] += sentence.widened
      counts['tokens of words too long for a row, cut off'] += whole - sum(map(len, words))
      gold = np.full(len(words), TARGET_PADDING['tags'], np.int32)
      if known:
        gold = np.array([index[tag] for tag in self._model_tags(sentence.tags or ())], np.int32)
      first = 0
      for last in _row_ends([len(word) for word in words], max_length - 2):
        pieces = words[first:last]
        row = np.concatenate([[tokenizer.cls_id], *pieces, [tokenizer.sep_id]]).astype(np.int32)
        places = np.cumsum([1, *map(len, pieces)])[:-1].astype(np.int32)
        target = np.full(len(row), TARGET_PADDING['tags'], np.int32)
        target[places] = gold[first:last]
        rows.append(row)
        tags.append(target)
        owners.append(number)
        notes.append(places)
        counts['sentences too long for one row, in several'] += first == 0 and last < len(words)
        first = last
    features = Features(rows, {'tags': tags}, np.array(owners, np.int32), notes)
    return features, {name: count for name, count in counts.items() if count}

  def texts(
    self, examples: Sequence[Sentence], features: Features, tokenizer: Tokenizer
  ) -> list[tuple[str, int]]:
    """See `task.HasTexts`; of a sentence, all words are in rows."""
    every = sys.maxsize
    return [(' '.join(sentence.tokens), every) for sentence in examples]

  def row_words(self, examples: Sequence[Sentence], features: Features) -> list[Sequence[str]]:
    """See `probe_data.HasWords`."""
    words = [iter(sentence.tokens) for sentence in examples]
    rows = zip(features.examples, features.notes, strict=True)
    return [[next(words[owner]) for _ in places] for owner, places in rows]

  def _has_known_tags(self, sentence: Sentence) -> bool:
    return sentence.tags is not None and set(self._model_tags(sentence.tags)) <= set(self.labels)

  def score(
    self, split: str, examples: Sequence[Sentence], features: Features, outputs: Outputs
  ) -> dict[str, float]:
    """Metrics of the sentences with tags.

    Returns:
      With entities: f1 (micro, as in conlleval), precision, recall, f1_strict, f1/TYPE, and
      accuracy over words. Otherwise accuracy and macro_f1 over words.
    """
    return self._metrics(
      examples, [tags for tags, _ in self._predicted(examples, features, outputs)]
    )

  def _predicted(
    self, examples: Sequence[Sentence], features: Features, outputs: Outputs
  ) -> list[tuple[list[str], np.ndarray]]:
    """For each sentence its likeliest tags, of entities in IOB2, and their probabilities."""
    found: list[tuple[list[str], np.ndarray]] = []
    for chosen, probabilities in self._likeliest(examples, features, outputs):
      tags = [self.labels[i] for i in chosen]
      if self.metric == 'f1' and self.model_coding != tag_schemes.IOB2:
        tags = tag_schemes.IOB2.encoded(self.model_coding.spans(tags), len(tags))
      found.append((tags, probabilities))
    return found

  def _metrics(
    self, examples: Sequence[Sentence], predicted: Iterable[Sequence[str]]
  ) -> dict[str, float]:
    gold_tags: list[tuple[str, ...]] = []
    predicted_tags: list[Sequence[str]] = []
    for sentence, tags in zip(examples, predicted, strict=True):
      if sentence.tags is not None and self._has_known_tags(sentence):
        gold_tags.append(sentence.tags)
        predicted_tags.append(tags)
    if not gold_tags:
      raise UserError('there are no tags to compare with; expected tagged data')
    gold = np.array([tag for tags in gold_tags for tag in tags])
    flat = np.array([tag for tags in predicted_tags for tag in tags])
    accuracy = {'accuracy': task_metrics.accuracy(gold, flat)}
    if self.metric == 'f1':
      found = entities.entity_metrics(gold_tags, predicted_tags, self.types)
      if self.model_coding != tag_schemes.IOB2:  # reading its tags has repaired them
        del found['f1_strict']
      return found | accuracy
    return accuracy | {'macro_f1': task_metrics.macro_f1(gold, flat)}

  def _likeliest(
    self, examples: Sequence[Sentence], features: Features, outputs: Outputs
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each sentence, index and probability of the likeliest label of every word."""
    labels: list[list[np.ndarray]] = [[] for _ in examples]
    probabilities: list[list[np.ndarray]] = [[] for _ in examples]
    rows = zip(features.examples, features.notes, outputs['logits'], strict=True)
    for owner, places, row_logits in rows:
      logits = np.asarray(row_logits, np.float64)[places]
      labels[owner].append(logits.argmax(-1))
      probabilities[owner].append(1 / np.exp(logits - logits.max(-1, keepdims=True)).sum(-1))
    pairs = zip(labels, probabilities, strict=True)
    return [(np.concatenate(a), np.concatenate(b)) for a, b in pairs]

  def predictions(
    self, examples: Sequence[Sentence], features: Features, outputs: Outputs
  ) -> list[dict[str, Any]]:
    """`tokens`, `tags` as the data writes them, their `probabilities`, and `entities`.

    An entity has a type, its first word, the word after its last, and text; of a text also
    `start_char` and `end_char`. Where the data has entities by characters, so have predictions: the
    `text`, and entities with `start` and `end` (characters), `label` and `text`.
    """
    result: list[dict[str, Any]] = []
    predicted = self._predicted(examples, features, outputs)
    for sentence, (tags, probabilities) in zip(examples, predicted, strict=True):
      row: dict[str, Any] = {'id': sentence.id} if sentence.id else {}
      if sentence.text:
        row['text'] = sentence.text
      row['tokens'] = list(sentence.tokens)
      row['tags'] = self._written(tags)
      row['probabilities'] = probabilities.round(6).tolist()
      if self.metric == 'f1':
        found = entities.entities(tags)
        row['entities'] = [_described_entity(sentence, span, self.of_texts) for span in found]
      result.append(row)
    return result

  def report(self, examples: Sequence[Sentence], features: Features, outputs: Outputs) -> Blocks:
    """See `report_blocks.HasReport`."""
    found = [
      tagging_reports.TaggedSentence(
        sentence.id or str(number),
        sentence.tokens,
        sentence.tags,
        tags,
        probabilities,
        sentence.text,
        sentence.offsets,
      )
      for number, (sentence, (tags, probabilities)) in enumerate(
        zip(examples, self._predicted(examples, features, outputs), strict=True), 1
      )
      if sentence.tags is not None and self._has_known_tags(sentence)
    ]
    if self.metric == 'f1':
      return tagging_reports.entity_report(found, self.types)
    return tagging_reports.word_report(found, self.labels)

  def submission(
    self, split: str, examples: Sequence[Sentence], features: Features, outputs: Outputs
  ) -> dict[str, bytes]:
    """Columns `word gold predicted`, which conlleval reads."""
    predicted = self._predicted(examples, features, outputs)
    written = (self._written(tags) for tags, _ in predicted)
    as_read = [
      sentence._replace(tags=None if sentence.tags is None else tuple(self._written(sentence.tags)))
      for sentence in examples
    ]
    return {f'{self.name}-{split}.conll': conll.to_columns(as_read, written)}

  def constant(self) -> dict[str, float]:
    """Metrics on dev of the most frequent tag of training; {} without dev data."""
    if 'dev' not in self.paths:
      return {}
    train, dev = self.examples('train'), self.examples('dev')
    tags = collections.Counter(tag for sentence in train for tag in sentence.tags or ())
    most = tags.most_common(1)[0][0]
    return self._metrics(dev, [[most] * len(sentence.tokens) for sentence in dev])

  def describe(self) -> dict[str, Any]:
    """What `TaggingSpec.restore` reads, for JSON."""
    return {
      'name': self.name,
      'labels': list(self.labels),
      'metric': self.metric,
      'layout': dataclasses.asdict(self.layout),
      'ignore': list(self.ignore),
      'repair': self.repair,
      'coding': dataclasses.asdict(self.coding),
      'model_coding': dataclasses.asdict(self.model_coding),
      'of_texts': self.of_texts,
    }


#### Tags ####


def _marks_entities(detected: Detected | None, tags: Collection[str]) -> bool:
  """Whether tags of any kind mark entities."""
  if detected is None:
    return False
  if detected.coding.separator:
    return True
  # Marks without types may be other tags: they follow a scheme, and are several.
  return not detected.faults and len(set(tags) - {tag_schemes.OUTSIDE}) > 1


def _entity_labels(task: TaggingTask, sentences: Sequence[Sentence]) -> tuple[str, ...]:
  """The labels of a task of entities, in IOB2.

  Both marks of a type are labels, even where training has only one of them.
  """
  tags = {tag for sentence in sentences for tag in sentence.tags or ()}
  types = {parts[1] for tag in tags if (parts := task.coding.parts(tag))} - {''}
  if missing := [kind for kind in task.ignore if kind not in types]:
    raise UserError(
      f'data.ignore_labels has {missing[0]!r}, which is not an entity type of the training data; '
      f'its types are {named(sorted(types))}'
    )
  kinds = sorted(types - set(task.ignore))
  if tags and not kinds and all(map(task.coding.parts, tags)):  # others are reported later
    raise UserError('the training data has no entity; expected at least one')
  marked = [f'{mark}-{kind}' for kind in kinds for mark in 'BI']
  # In segmentation each word is in an entity.
  always = tag_schemes.OUTSIDE not in tags and task.coding != tag_schemes.IOB2 and not task.ignore
  return tuple(marked if always else [tag_schemes.OUTSIDE, *marked])


def _notes(task: TaggingTask, columns: Mapping[str, str | None]) -> tuple[str, ...]:
  """Phrases about what was detected in the training data."""
  notes: list[str] = []
  if columns:
    notes.append(f'columns: words {columns["words"]!r}, tags {columns["tags"]!r}')
  if task.of_texts:
    notes.append('entities by characters; texts are split into words')
  elif task.metric == 'f1':
    inside = '' if task.coding == tag_schemes.IOB2 else '; the labels of the model are IOB2'
    notes.append(f'tags of entities in {task.coding.describe()}{inside}')
  return tuple(notes)


def _wrong_tag(sentence: Sentence, tags: Sequence[str], fault: int, coding: TagCoding) -> UserError:
  """The error for tags that violate their scheme."""
  unknown = next((i for i, tag in enumerate(tags) if coding.parts(tag) is None), None)
  if unknown is not None:
    where, tag = place(sentence.path, sentence.lines[unknown]), tags[unknown]
    remedy = 'set data.tags to the column of the tags, or use the task tagging or pos'
    if tag.isdecimal():
      remedy = 'set data.label_names to the names of the tags in their order, such as O,B-PER,I-PER'
    return UserError(
      f'{where} has the tag {tag!r}; expected O, B-TYPE or I-TYPE, or the tags of another scheme: '
      f'{remedy}'
    )
  before = repr(tags[fault - 1]) if fault else 'the start of the sentence'
  after = repr(tags[fault + 1]) if fault + 1 < len(tags) else 'the end of the sentence'
  title = tag_schemes.SCHEMES[coding.scheme].title
  between = f'after {before}'
  if coding.scheme not in ('iob1', 'iob2'):
    between += f' and before {after}'
  return UserError(
    f'{place(sentence.path, sentence.lines[fault])} has the tag {tags[fault]!r} {between}, which '
    f'violates {title}; fix it, or set data.repair_tags=repair to read it as conlleval does, or '
    'data.tag_scheme to the scheme of the data'
  )


def _described_entity(
  sentence: Sentence, span: entities.Span, by_characters: bool
) -> dict[str, Any]:
  """An entity of a prediction; see `TaggingTask.predictions`."""
  kind, start, end = span
  if not sentence.offsets:
    return {'type': kind, 'start': start, 'end': end, 'text': ' '.join(sentence.tokens[start:end])}
  first, last = sentence.offsets[start][0], sentence.offsets[end - 1][1]
  text = sentence.text[first:last]
  if by_characters:
    return {'start': first, 'end': last, 'label': kind, 'text': text}
  place_of = {'start': start, 'end': end, 'start_char': first, 'end_char': last}
  return {'type': kind, **place_of, 'text': text}


#### Rows ####


def _encoded_words(examples: Iterable[Sentence], tokenizer: Tokenizer) -> dict[str, np.ndarray]:
  """Token ids of each distinct word; [UNK] for a word without tokens."""
  words = list(dict.fromkeys(token for sentence in examples for token in sentence.tokens))
  unknown = np.array([tokenizer.unk_id], np.int32)
  encoded = zip(words, tokenizer.encode_arrays(words), strict=True)
  return {word: ids if len(ids) else unknown for word, ids in encoded}


def _row_ends(lengths: Sequence[int], room: int) -> list[int]:
  """The word after the last of each row of at most `room` tokens; one row without words."""
  ends: list[int] = []
  used = 0
  for i, length in enumerate(lengths):
    if used + length > room:
      ends.append(i)
      used = 0
    used += length
  return [*ends, len(lengths)]
