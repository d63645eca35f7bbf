"""Opening a pretraining run in Python."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from electra_jax import console, file_access
from electra_jax.config import PretrainingConfig
from electra_jax.data.prepare.preparation import HeldoutSource, Prepared
from electra_jax.data.store.token_store import Store
from electra_jax.data.tokenizers.tokenization import Tokenizer, load_tokenizer
from electra_jax.errors import UserError
from electra_jax.model.electra import Electra
from electra_jax.pretrain import build, evaluation, minimal_pairs, run_start
from electra_jax.pretrain.objectives.settings import Settings
from electra_jax.pretrain.other_corpus import EvaluationCorpus, open_corpus
from electra_jax.pretrain.pretrain_step import init_params
from electra_jax.pretrain.resolve import ResolvedRun, resolve_saved_run
from electra_jax.text_functions import DetectedToken, MaskCandidate, Reading, TextFunctions
from electra_jax.training import checkpoints, partitioning, run_folder
from electra_jax.training.run_folder import read_json

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """A trained run.

  Calling it with texts returns a `Reading`; `embed`, `detect`, `fill_mask` and `minimal_pairs`
  return less, in memory that does not depend on the longest text.

  Attributes:
    workdir: the run's folder.
    step: step of the checkpoint.
    resolved: the run's resolved config.
    config: config of the phase of the checkpoint.
    tokenizer: the run's tokenizer.
    model: both towers.
    params: parameters of the checkpoint.
    settings: settings of the objective.
    layout: mesh that the parameters are on.
  """

  workdir: str
  step: int
  resolved: ResolvedRun
  config: PretrainingConfig
  tokenizer: Tokenizer
  model: Electra
  params: PyTree
  settings: Settings
  layout: partitioning.Layout

  @property
  def mesh(self) -> jax.sharding.Mesh:
    """Mesh that the parameters are on."""
    return self.layout.mesh

  @functools.cached_property
  def _prepared(self) -> Prepared:
    """The corpus; see `heldout`."""
    return run_start.prepare_data(self.config, self.resolved.tokenizer)

  @property
  def heldout_sources(self) -> tuple[HeldoutSource, ...]:
    """The sources of a mixture, in the order of the held-out rows; empty for one source."""
    return self._prepared.heldout_sources

  @functools.cached_property
  def heldout(self) -> Store:
    """The held-out rows.

    Raises:
      UserError: the corpus is not the one that the run was trained on, or has no held-out rows.
    """
    prepared = self._prepared
    recorded = read_json(run_folder.folder(self.workdir) / 'resolved.json', {'data': str})['data']
    if run_start.data_identity(prepared) not in recorded.split('+'):
      raise UserError(
        f'the corpus {run_start.corpus_name(self.config)} has changed since {self.workdir} was '
        'trained: its rows are others; restore the corpus.'
      )
    if prepared.heldout is None:
      raise UserError(
        f'the corpus {run_start.corpus_name(self.config)} has no held-out rows, so {self.workdir} '
        'cannot be evaluated; expected a run with --config.data.heldout_fraction above 0.'
      )
    return prepared.heldout

  def evaluation_corpus(self, source: str | None = None) -> EvaluationCorpus:
    """The rows to evaluate on.

    Args:
      source: another corpus, see other_corpus.open_corpus; None for the held-out rows of the run.

    Raises:
      UserError: the corpus cannot be read, or is another one than the run was trained on.
    """
    if source is None:
      return EvaluationCorpus(self.heldout, self.heldout_sources)
    folder = str(run_folder.folder(self.workdir) / 'tokenizer')
    return open_corpus(source, self.config, self.tokenizer, folder)

  #### Texts ####

  @functools.cached_property
  def _functions(self) -> TextFunctions:
    return TextFunctions(
      self.model, self.params, self.tokenizer, self.layout, self.config.sequence_length
    )

  def __call__(self, texts: str | Sequence[str]) -> Reading:
    """Reads texts. A text is never truncated.

    The first time that the tokenizer is found to lose 1% of the characters, a Python warning states
    which.

    Args:
      texts: one text, or several. The result is padded to the longest of them: for many texts use
        `embed` or `detect`, or call it for some at a time.

    Raises:
      UserError: a text is longer than the positions of the encoder.
    """
    return self._functions.read(self._functions.checked(texts))

  def embed(self, texts: str | Sequence[str], pooling: str = 'mean') -> np.ndarray:
    """A vector per text, of the discriminator's last hidden states.

    Args:
      texts: one text, or several.
      pooling: 'mean' over the tokens of a text, [CLS] and [SEP] included, or 'cls', the state of
        [CLS].

    Returns:
      float32 `[texts, hidden]`.

    Raises:
      UserError: a text is longer than the positions of the encoder, or the pooling is unknown.
    """
    return self._functions.embed(self._functions.checked(texts), pooling)

  def detect(self, texts: str | Sequence[str]) -> list[tuple[DetectedToken, ...]]:
    """For each token of each text the probability that it was replaced.

    Args:
      texts: one text, or several.

    Raises:
      UserError: the run has no discriminator, a text is longer than the positions of the encoder,
        or the tokenizer has no character offsets.
    """
    return self._functions.detect(self._functions.checked(texts))

  def fill_mask(
    self, texts: str | Sequence[str], top: int = 5
  ) -> list[tuple[tuple[MaskCandidate, ...], ...]]:
    """The generator's likeliest tokens at each mask of each text.

    Of several masks in a text, each is filled while the others stay masked.

    Args:
      texts: one text, or several, each with at least one [MASK].
      top: number of candidates.

    Returns:
      For each text and each of its masks the candidates, the likeliest first.

    Raises:
      UserError: the run has no generator, a text has no mask or is longer than the positions of the
        encoder.
    """
    return self._functions.fill_mask(self._functions.checked(texts), top)

  def minimal_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[minimal_pairs.PairScore]:
    """Scores of both sentences of each pair, see minimal_pairs.score_sentences.

    Args:
      pairs: of a good and a bad sentence.

    Raises:
      UserError: the run has neither discriminator nor generator, or a sentence is longer than the
        encoder's positions.
    """
    return minimal_pairs.score_pairs(self, pairs)

  def evaluate(self, source: str | None = None, rows: int | None = None) -> dict[str, Any]:
    """Evaluates the run as `--mode=evaluate`, prints a table and writes it to the run's folder.

    Args:
      source: another corpus, as config.data.source names it, or the folder of a prepared one; None
        for the held-out rows of the run.
      rows: most rows, evenly spaced; None for all.

    Returns:
      What evaluation.json has: `figures` with the value and interval of each metric, and counts.

    Raises:
      UserError: the corpus cannot be read, or is another one than the run was trained on.
    """
    return evaluation.evaluate(self, rows=rows, source=source)


def open_run(
  workdir: str | os.PathLike[str], which: str | int = 'last', store: str | None = None
) -> Run:
  """Opens a checkpoint of a run on all devices. Only the parameters are read.

  Args:
    workdir: the run's folder, on this machine or gs://.
    which: 'last', 'best' (by config.best_by), or a step.
    store: where the prepared corpus is, if it has moved since training.

  Raises:
    UserError: the folder does not hold a run, cannot be reached, or has no such checkpoint.
  """
  folder = run_folder.folder(workdir)
  with file_access.reaching(folder):
    is_run = (folder / 'config.json').exists() and (folder / 'tokenizer').is_dir()
  if not is_run:
    raise UserError(
      f'{folder} is not a run: it has no config.json and tokenizer; name one with --workdir.'
    )
  # This kernel supports all devices and lengths.
  resolved = resolve_saved_run(folder, {'model.attention': 'xla'})
  config = resolved.config
  tokenizer = load_tokenizer(folder / 'tokenizer')
  if file_access.exists(folder / 'resolved.json'):
    recorded = read_json(folder / 'resolved.json').get('vocab_size', tokenizer.size)
    run_start.check_vocabulary(folder, recorded, tokenizer)
  model = build.build_model(config, tokenizer.size)
  # Parameters are opened unsplit: the run may have used more devices than this machine has.
  layout = partitioning.make_layout()
  boxed = jax.eval_shape(lambda: init_params(model, 0, config.sequence_length))
  with console.phase('reading', f'{which} checkpoint of {folder}'):
    params, step = checkpoints.restore_params(
      folder,
      which,
      nn.unbox(boxed),
      partitioning.parameter_shardings(boxed, layout),
      checkpoints.run_criterion(config),
    )
  phase = next(phase for phase in resolved.phases if step <= phase.last)
  of_phase = phase.config.replace({'data.store': store} if store else {})
  return Run(
    workdir=str(folder),
    step=step,
    resolved=resolved,
    config=of_phase,
    tokenizer=tokenizer,
    model=model,
    params=params,
    settings=build.build_settings(of_phase, tokenizer),
    layout=layout,
  )
