"""Opening a pretraining run in Python."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from electra_jax import file_access
from electra_jax.config import PretrainingConfig
from electra_jax.data.prepare.preparation import HeldoutSource, Prepared
from electra_jax.data.store.token_store import Store
from electra_jax.data.tokenizers import character_losses, loss_report
from electra_jax.data.tokenizers.tokenization import Tokenizer, load_tokenizer
from electra_jax.errors import UserError
from electra_jax.model.electra import Electra
from electra_jax.model.encoder import packed_inputs
from electra_jax.pretrain import build, run_start
from electra_jax.pretrain.objectives.settings import Settings
from electra_jax.pretrain.pretrain_step import init_params
from electra_jax.pretrain.resolve import ResolvedRun, resolve_saved_run
from electra_jax.training import checkpoints, partitioning, run_folder
from electra_jax.training.run_folder import read_json

PyTree = Any
_LOSS_SAMPLE = 100_000  # characters that are compared with their tokens
LENGTHS = 16  # texts are padded to multiples of it, so that few programs are compiled


class Reading(NamedTuple):
  """What the discriminator computes of texts.

  Attributes:
    tokens: tokens of each text, with [CLS] and [SEP].
    hidden_states: float32 `[texts, length, hidden]`, 0 after the tokens of a text.
    replaced: float32 `[texts, length]`, probability that a token was replaced, 0 after the tokens
      of a text; nan if the objective has no discriminator head.
  """

  tokens: list[list[str]]
  hidden_states: np.ndarray
  replaced: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """A trained run. Calling it with texts returns a `Reading`.

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

  @functools.cached_property
  def _warn_once(self) -> loss_report.OneWarning:
    return loss_report.OneWarning()

  @functools.cached_property
  def _read(self) -> Callable[[PyTree, np.ndarray], tuple[jax.Array, jax.Array]]:
    t = self.tokenizer

    def read(params: PyTree, token_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
      inputs = packed_inputs(token_ids, t.pad_id, t.cls_id, t.sep_id)
      hidden: PyTree = self.model.apply({'params': params}, inputs, method='hidden_states')
      logits: PyTree
      if 'discriminator_head' in self.model.heads:
        logits = self.model.apply({'params': params}, hidden, inputs.positions, method='verdicts')
      else:
        logits = jnp.full(token_ids.shape, jnp.nan)
      real = token_ids != t.pad_id
      states = jnp.where(real[..., None], hidden.astype(jnp.float32), 0)
      return states, jnp.where(real, jax.nn.sigmoid(logits), 0)

    return jax.jit(read)

  def __call__(self, texts: str | Sequence[str]) -> Reading:
    """Reads texts. A text is never truncated.

    The first time that the tokenizer loses 1% of the characters, a Python warning states which.

    Args:
      texts: one text, or several.

    Raises:
      UserError: a text is longer than the positions of the encoder.
    """
    if isinstance(texts, str):
      texts = [texts]
    t, encoder = self.tokenizer, self.model.discriminator_config
    if not self._warn_once.issued:
      losses = character_losses.count(t, character_losses.sample(texts, _LOSS_SAMPLE))
      self._warn_once(loss_report.warnings(losses, 'these texts', loss_report.OTHER_MODEL))
    rows = [[t.cls_id, *t.encode(text), t.sep_id] for text in texts]
    longest = max(map(len, rows), default=0)
    if encoder.has_position_table and longest > encoder.max_positions:
      raise UserError(
        f'a text has {longest} tokens and the encoder has {encoder.max_positions} positions; split '
        'the text.'
      )
    token_ids = np.full((len(rows), -(-longest // LENGTHS) * LENGTHS), t.pad_id, np.int32)
    for row, ids in zip(token_ids, rows, strict=True):
      row[: len(ids)] = ids
    hidden, replaced = jax.device_get(self._read(self.params, token_ids))
    tokens = [[t.token(i) for i in ids] for ids in rows]
    return Reading(tokens, hidden[:, :longest], replaced[:, :longest])


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
