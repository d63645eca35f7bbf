"""A run's folder: what is written there at the start, and opening it again."""

import dataclasses
import functools
import os
import shutil
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from electra_jax import console, file_access
from electra_jax.config import (
  PretrainingConfig,
  completed,
  differences,
  has_budget,
  names_with,
  to_plain,
)
from electra_jax.data.prepare.preparation import (
  REPORT_FILE,
  Prepared,
  open_prepared,
  prepare_corpus,
)
from electra_jax.data.prepare.recipe import CorpusRecipe
from electra_jax.data.tokenizers.tokenization import Tokenizer, load_tokenizer
from electra_jax.errors import UserError
from electra_jax.model.electra import Electra
from electra_jax.model.encoder import packed_inputs
from electra_jax.pretrain import build
from electra_jax.pretrain.objectives.common import Settings
from electra_jax.pretrain.pretrain_step import init_params
from electra_jax.pretrain.resolve import ResolvedRun, resolve, resolve_saved
from electra_jax.training import checkpoints, partitioning, plugins, run_folder, versions
from electra_jax.training.progress import quantity
from electra_jax.training.run_folder import read_json, write_json


def prepare_data(config: PretrainingConfig, tokenizer: str | None = None, **where) -> Prepared:
  """The corpus of a config: opened where `config.data.store` names one, else prepared, or found in the cache.

  Args:
    tokenizer: a folder in the place of config.data.tokenizer; None for that.
    where: `output` and `beam` of data.prepare.prepare.

  Raises UserError where the store's rows are not as long as the config's, or what data.prepare raises.
  """
  d = config.data
  if d.store:
    prepared = open_prepared(d.store, d.cache)
    if prepared.train.length != config.sequence_length:
      raise UserError(
        f'config.data.store {d.store!r} has rows of {prepared.train.length} tokens and config.sequence_length is '
        f'{config.sequence_length}; make the two equal.'
      )
    if prepared.heldout is None:
      raise UserError(
        f'config.data.store {d.store!r} holds out no document; prepare it with config.data.heldout_fraction above 0.'
      )
    return prepared
  choice = {'auto': None, 'yes': True, 'no': False}
  recipe = CorpusRecipe(
    source=d.source,
    row_length=config.sequence_length,
    document_format=d.document_format,
    heldout_fraction=d.heldout_fraction,
    invalid_utf8=d.invalid_utf8,
    near_duplicates=d.near_duplicates,
    row_format=d.row_format,
    seed=d.seed,
    tokenizer=tokenizer or d.tokenizer,
    vocab_size=d.vocab_size,
    lowercase=choice[d.lowercase],
    strip_accents=choice[d.strip_accents],
    byte_fallback=choice[d.byte_fallback],
    tokenizer_options=d.tokenizer_options,
  )
  return prepare_corpus(recipe, cache=d.cache, processes=d.workers, **where)


def prepare_only(config, output: str | None = None, beam: str | None = None) -> Prepared:
  """--mode=prepare: makes the tokenizer and the rows of a config, and shows the report. See data.prepare.prepare."""
  run = resolve(config)
  config = run.config
  if config.data.store:
    raise UserError(
      'config.data.store names a corpus that is prepared already; leave it out to prepare one from config.data.source.'
    )
  console.heading(f'{config.name}: preparing')
  prepared = prepare_data(config, run.tokenizer, output=output, beam=beam)
  report = file_access.join(prepared.path, REPORT_FILE)
  print('\n' + file_access.read_bytes(report).decode())
  console.say('report', report)
  field = 'data.store=' + prepared.path if output else None
  console.say(
    'next',
    'python -m electra_jax.main with the same --config'
    + (f' and --config.{field}' if field else ''),
  )
  return prepared


def corpus_name(config: PretrainingConfig) -> str:
  """The corpus of a config, for a sentence."""
  return repr(config.data.store or config.data.source)


def data_identity(prepared) -> str:
  """What a run's figures depend on of its data: the rows, however they came to be."""
  return '-'.join(store.identity for store in (prepared.train, prepared.heldout))


def claim(workdir, config: PretrainingConfig) -> dict:
  """Makes WORKDIR this config's, or finds that it is already; returns what an earlier start resolved (empty for none).

  A folder without a checkpoint holds nothing to lose: another config may have it.

  Raises UserError where the folder cannot be written or reached, or holds the run of another config.
  """
  workdir = run_folder.folder(workdir)
  run_folder.check_writable(workdir)
  plain, path, resolved = (
    to_plain(config),
    workdir / 'config.json',
    workdir / 'resolved.json',
  )
  if run_folder.exists(path):
    free = names_with(PretrainingConfig, 'resumable')
    if has_budget(config):  # which determined the steps
      free += ('steps',)
    before = completed(read_json(path), PretrainingConfig)
    changed = differences(before, plain, free)
    if changed and checkpoints.any_saved(workdir):
      raise UserError(
        f'{workdir} holds a run of another config ({"; ".join(changed[:3])}{"; ..." if len(changed) > 3 else ""}); '
        'give the same config to resume it, or another --workdir.'
      )
    if changed:
      with run_folder.reaching(resolved, 'removed'):
        resolved.unlink(
          missing_ok=True
        )  # a start that came to nothing, over a mistake say, does not bind the next
  known = read_json(resolved) if run_folder.exists(resolved) else {}
  write_json(path, plain | ({'steps': known['steps']} if 'steps' in known else {}))
  versions.record(workdir, resumed=checkpoints.any_saved(workdir))
  plugins.record(workdir, config.specs)
  return known


def describe_phase(phase, prepared) -> str:
  """Steps, tokens and epochs of a phase, for the first screen."""
  c = phase.config
  epochs = prepared.train.epochs(c.steps * c.batch_size)
  return (
    f'{c.steps:,} steps of {c.batch_size} x {c.sequence_length} = {quantity(c.steps * c.batch_size * c.sequence_length)} tokens, '
    + (
      f'{epochs[0]:,.1f} epochs of the corpus'
      if len(epochs) == 1
      else 'epochs of each source: '
      + ', '.join(
        f'{count:,.1f} of {source["location"]}'
        for count, source in zip(epochs, prepared.facts['sources'], strict=True)
      )
    )
  )


def use_compilation_cache(config: PretrainingConfig) -> None:
  """Compiled programs are kept where the config says, for the next start."""
  if config.compilation_cache:
    jax.config.update('jax_compilation_cache_dir', os.path.expanduser(config.compilation_cache))


def keep_tokenizer(workdir, tokenizer: Tokenizer) -> None:
  """Keeps the tokenizer with the run: whole or not at all on this machine, and in a bucket before any checkpoint."""
  final = run_folder.folder(workdir) / 'tokenizer'
  if run_folder.is_remote(final):
    if not _is_kept(final, tokenizer):
      with run_folder.reaching(final, 'written'):
        final.rmtree(missing_ok=True)
        tokenizer.save(final)
  elif not final.exists() or load_tokenizer(final).fingerprint != tokenizer.fingerprint:
    temporary = final.with_name('tokenizer.tmp')
    shutil.rmtree(temporary, ignore_errors=True)
    tokenizer.save(temporary)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)


def _is_kept(final, tokenizer) -> bool:
  try:
    return run_folder.exists(final) and load_tokenizer(final).fingerprint == tokenizer.fingerprint
  except UserError:  # its objects come one by one, and a start may have ended between two
    return False


class Reading(NamedTuple):
  """What the discriminator makes of texts."""

  tokens: list[list[str]]  # of each text, [CLS] and [SEP] included
  hidden_states: np.ndarray  # float32 [texts, length, hidden], zeros past a text's tokens
  replaced: np.ndarray  # float32 [texts, length]: probability that the token was replaced, 0 past a text's tokens; nan where nothing judges them


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """A trained run in Python. Call it with texts to get a Reading."""

  workdir: str
  step: int
  resolved: ResolvedRun
  config: PretrainingConfig  # of the phase that the checkpoint is from
  tokenizer: Tokenizer
  model: Electra
  params: Any
  settings: Settings
  layout: partitioning.Layout

  @property
  def mesh(self) -> jax.sharding.Mesh:
    return self.layout.mesh

  @functools.cached_property
  def heldout(self):
    """The store of held-out rows. Raises UserError where the corpus is no longer the one that the run was trained on."""
    prepared = prepare_data(self.config, self.resolved.tokenizer)
    of_phases = read_json(run_folder.folder(self.workdir) / 'resolved.json')['data'].split('+')
    if data_identity(prepared) not in of_phases:
      raise UserError(
        f'the corpus {corpus_name(self.config)} has changed since {self.workdir} was trained: its rows are others; '
        'restore the corpus.'
      )
    return prepared.heldout

  @functools.cached_property
  def _read(self):
    def read(params, token_ids):
      inputs = packed_inputs(
        token_ids, self.tokenizer.pad_id, self.tokenizer.cls_id, self.tokenizer.sep_id
      )
      hidden = self.model.apply({'params': params}, inputs, method='hidden_states')
      judges = 'discriminator_head' in self.model.heads
      logits = (
        self.model.apply({'params': params}, hidden, method='verdicts')
        if judges
        else jnp.full(token_ids.shape, jnp.nan)
      )
      real = token_ids != self.tokenizer.pad_id
      return jnp.where(real[..., None], hidden.astype(jnp.float32), 0), jnp.where(
        real, jax.nn.sigmoid(logits), 0
      )

    return jax.jit(read)

  def __call__(self, texts: list[str]) -> Reading:
    """Texts -> Reading. A text longer than the encoder's positions is an error, never cut."""
    if isinstance(texts, str):
      texts = [texts]
    t = self.tokenizer
    rows = [[t.cls_id, *t.encode(text), t.sep_id] for text in texts]
    longest = max(map(len, rows), default=0)
    if (
      self.model.discriminator_config.has_position_table
      and longest > self.model.discriminator_config.max_positions
    ):
      raise UserError(
        f"a text of {longest} tokens is longer than the encoder's "
        f'{self.model.discriminator_config.max_positions} positions; split it.'
      )
    token_ids = np.full(
      (len(rows), -(-longest // 16) * 16), t.pad_id, np.int32
    )  # few shapes, few compilations
    for row, ids in zip(token_ids, rows, strict=True):
      row[: len(ids)] = ids
    hidden, replaced = jax.device_get(self._read(self.params, token_ids))
    return Reading(
      [[t.token(i) for i in ids] for ids in rows], hidden[:, :longest], replaced[:, :longest]
    )


def open_run(workdir, which: str = 'last', store: str | None = None) -> Run:
  """Opens the Orbax checkpoint of a run, parameters alone, on all devices.

  Args:
    workdir: the run's folder, which may be gs://.
    which: 'last', 'best' (by the held-out figure), or a step.
    store: where the prepared corpus is, if it is elsewhere than when the run was trained.

  Raises UserError where the folder is not a run's, cannot be reached, or holds no such checkpoint.
  """
  workdir = run_folder.folder(workdir)
  with run_folder.reaching(workdir):
    is_run = (workdir / 'config.json').exists() and (workdir / 'tokenizer').is_dir()
  if not is_run:
    raise UserError(
      f'{workdir} is not a run: it has no config.json and tokenizer; name one with --workdir.'
    )
  # This kernel runs anywhere, and takes texts of any length.
  resolved = resolve_saved(workdir, {'model.attention': 'xla'})
  config = resolved.config
  tokenizer = load_tokenizer(workdir / 'tokenizer')
  model = build.build_model(config, tokenizer.size)
  # Parameters alone are small, and whole wherever they are opened; the run may have been split over more devices than are here.
  layout = partitioning.make_layout()
  boxed = jax.eval_shape(lambda: init_params(model, 0, config.sequence_length))
  params, step = checkpoints.restore_params(
    workdir, which, nn.unbox(boxed), partitioning.parameter_shardings(boxed, layout)
  )
  phase = next(phase for phase in resolved.phases if step <= phase.last)
  of_phase = phase.config.replace({'data.store': store} if store else {})
  return Run(
    str(workdir),
    step,
    resolved,
    of_phase,
    tokenizer,
    model,
    params,
    build.build_settings(of_phase, tokenizer),
    layout,
  )
