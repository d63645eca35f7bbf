"""What probes are trained on: frozen states of each layer, labels, and labels of control tasks.

A task of tags gives an example per word, the state of the word's first token; a task of classes an
example per text, the pooled state of its row. States are computed once, and kept in a file per
layer, so that memory holds those of one layer at a time.
"""

import collections
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from electra_jax.data.tokenizers.tokenization import Tokenizer
from electra_jax.errors import UserError
from electra_jax.finetune.finetune_step import PredictionSizes, special_ids
from electra_jax.finetune.tasks.task import Features, Outputs, Task
from electra_jax.model.encoder import packed_inputs
from electra_jax.model.heads import ROW_KINDS, FineTuned, pooled
from electra_jax.training import partitioning
from electra_jax.training.flops import encoder_flops
from electra_jax.training.length_batches import (
  SHORTEST,
  BatchPlanner,
  batch_tokens,
  powers_of_two,
  program_tokens,
)
from electra_jax.training.row_predictor import RowPredictor

_FEWER = 4  # a batch has this part of the tokens of prediction, as it outputs all layers


@runtime_checkable
class HasWords(Protocol):
  """A task of tags, whose words can have a control task."""

  def row_words(self, examples: Sequence[Any], features: Features) -> list[Sequence[str]]:
    """The words of each row, in order: those whose first tokens may have a tag.

    Args:
      examples: of the task.
      features: their rows.
    """


class ProbeExamples(NamedTuple):
  """Examples of a probe, in the order of the rows.

  Attributes:
    rows: the row of each example, int64 `[examples]`.
    places: its token in the row; 0 for a row as a whole.
    labels: its label, int64 `[examples]`.
    words: its word; () for rows as a whole.
    groups: the text that it is from, for intervals.
  """

  rows: np.ndarray
  places: np.ndarray
  labels: np.ndarray
  words: Sequence[str]
  groups: np.ndarray


def probe_examples(task: Task, examples: Sequence[Any], features: Features) -> ProbeExamples:
  """The labeled examples of a probe.

  Args:
    task: of tags or classes.
    examples: of the task.
    features: their rows.

  Raises:
    UserError: the task is of another kind.
  """
  targets = features.targets
  if 'label' in targets:
    labels = np.asarray(targets['label'], np.int64)
    rows = np.flatnonzero(labels >= 0)
    return ProbeExamples(rows, np.zeros_like(rows), labels[rows], (), features.examples[rows])
  if 'tags' not in targets or not isinstance(task, HasWords):
    raise not_probed(task)
  places = [np.flatnonzero(tags >= 0) for tags in targets['tags']]
  words = [
    of_row if len(of_row) == len(where) else ()
    for of_row, where in zip(task.row_words(examples, features), places, strict=True)
  ]
  rows = np.repeat(np.arange(len(places)), [len(where) for where in places])
  of_rows = [tags[where] for tags, where in zip(targets['tags'], places, strict=True)]
  return ProbeExamples(
    rows,
    np.concatenate(places),
    np.concatenate(of_rows).astype(np.int64),
    [word for of_row in words for word in of_row],
    features.examples[rows],
  )


def not_probed(task: Task) -> UserError:
  """The error for a task that is neither of tags nor of classes."""
  return UserError(
    f'config.task is {task.name!r}, a task of {task.head}; probes are for tasks of tags '
    '(--config.task=pos, ner, tagging) and of classes (cola, classification and others).'
  )


def word_outputs(probed: ProbeExamples, logits: np.ndarray, features: Features) -> Outputs:
  """Logits of a probe in the form that `Task.score` takes.

  Args:
    probed: its examples.
    logits: float `[examples, labels]`.
    features: the rows.
  """
  if 'tags' not in features.targets:
    whole = np.zeros((len(features), logits.shape[1]))
    whole[probed.rows] = logits
    return {'logits': whole}
  found = [np.zeros((len(ids), logits.shape[1])) for ids in features.token_ids]
  for row, place, one in zip(probed.rows, probed.places, logits, strict=True):
    found[row][place] = one
  return {'logits': found}


#### States ####


class StateReader:
  """Computes the states of all layers of an encoder for examples of probes.

  Attributes:
    layers: number of layers, the embeddings included.
    width: of the states.
  """

  def __init__(
    self,
    model: FineTuned,
    params: Mapping[str, Any],
    tokenizer: Tokenizer,
    layout: partitioning.Layout,
    sizes: PredictionSizes,
  ) -> None:
    """Compiles nothing yet.

    Args:
      model: the encoder with a head; of a task of classes the states of a row are pooled as by it.
      params: its parameters.
      tokenizer: of the encoder.
      layout: the mesh.
      sizes: of batches of prediction.
    """
    self._params = params
    self.layers = model.config.num_layers + 1
    self.width = model.config.hidden_size
    ids, whole = special_ids(tokenizer), model.kind in ROW_KINDS

    def read(params: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, jax.Array]:
      inputs = packed_inputs(batch['token_ids'], ids.pad_id, ids.cls_id, ids.sep_id)
      states: Any = model.apply({'params': params}, inputs, method='layer_states')
      states = states.astype(jnp.float32)
      if whole:
        of_rows = [pooled(layer, inputs.segment_ids, model.pooling) for layer in states]
        states = jnp.stack(of_rows)[:, :, None]
      return {'states': jnp.moveaxis(states, 0, 1)}

    shards = partitioning.row_shards(layout.mesh)
    platform = layout.mesh.devices.flat[0].platform
    flops = encoder_flops(model.config, SHORTEST) / SHORTEST
    most = min(batch_tokens(platform), -(-sizes.rows * sizes.max_length // shards)) // _FEWER
    planner = BatchPlanner(
      powers_of_two(sizes.max_length),
      max(sizes.max_length, most),
      shards,
      program_tokens(platform, flops),
    )
    jitted = jax.jit(
      partitioning.within(layout, read), out_shardings=partitioning.replicated(layout.mesh)
    )
    self._rows = RowPredictor(jitted, planner, tokenizer.pad_id, layout.mesh)

  def states(
    self,
    features: Features,
    probed: ProbeExamples,
    folder: pathlib.Path,
    progress: Callable[[int], None] | None = None,
  ) -> list[np.ndarray]:
    """The states of each layer, float32 `[examples, width]`, each in a file.

    Args:
      features: the rows.
      probed: the examples.
      folder: an empty one for the files, which must exist while the arrays are used.
      progress: called with the number of rows done.
    """
    shape = (max(1, len(probed.rows)), self.width)
    files = [
      np.memmap(folder / f'layer-{i}', np.float32, 'w+', shape=shape) for i in range(self.layers)
    ]
    bounds = np.searchsorted(probed.rows, np.arange(len(features) + 1))
    done = 0
    for rows, outputs in self._rows.batches(self._params, features.token_ids):
      for row, states in zip(rows, outputs['states'], strict=True):
        part = slice(bounds[row], bounds[row + 1])
        for layer, file in enumerate(files):
          file[part] = states[layer, probed.places[part]]
      done += len(rows)
      if progress:
        progress(done)
    return [file[: len(probed.rows)] for file in files]


#### Control tasks and baselines ####


def control_labels(
  train: ProbeExamples, dev: ProbeExamples, classes: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Labels of a control task: each word has one label at random (Hewitt and Liang 2019, section 2).

  They are drawn by the frequency of the labels of the task in training.

  Args:
    train: examples of training.
    dev: those that are evaluated.
    classes: number of labels.
    seed: of the labels.

  Returns:
    Labels of train and dev, int64 `[examples]` each.
  """
  types = sorted({*train.words, *dev.words})
  shares = np.bincount(train.labels, minlength=classes) / len(train.labels)
  drawn = np.random.default_rng(seed).choice(classes, len(types), p=shares)
  label_of = dict(zip(types, drawn.tolist(), strict=True))
  of_train, of_dev = ([label_of[word] for word in one.words] for one in (train, dev))
  return np.array(of_train, np.int64), np.array(of_dev, np.int64)


def baseline_answers(train: ProbeExamples, dev: ProbeExamples) -> dict[str, np.ndarray]:
  """Answers without an encoder, int64 `[examples of dev]`.

  Returns:
    `majority`, the most frequent label of training, and for words `word type`, the most frequent
    label of the word in training, or the majority for words that it lacks.
  """
  most = int(np.bincount(train.labels).argmax())
  found = {'majority': np.full(len(dev.labels), most)}
  if not train.words:
    return found
  counts: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
  for word, label in zip(train.words, train.labels.tolist(), strict=True):
    counts[word][label] += 1
  usual = {word: of_word.most_common(1)[0][0] for word, of_word in counts.items()}
  found['word type'] = np.array([usual.get(word, most) for word in dev.words], np.int64)
  return found
