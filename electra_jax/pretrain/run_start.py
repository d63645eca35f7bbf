"""The start of a pretraining run: it takes its folder and prepares its corpus."""

import os
import tempfile
from collections.abc import Iterable
from typing import Any

from electra_jax import console, file_access
from electra_jax.config import (
  AnyConfig,
  Phase,
  PretrainingConfig,
  has_budget,
  to_plain,
)
from electra_jax.console import quantity
from electra_jax.data.corpus import given_texts
from electra_jax.data.prepare import advice
from electra_jax.data.prepare.preparation import (
  REPORT_FILE,
  Prepared,
  open_prepared,
  prepare_corpus,
)
from electra_jax.data.prepare.recipe import CorpusRecipe
from electra_jax.data.store.mixture import Mixing, Mixture
from electra_jax.data.tokenizers import tokenizer_folders
from electra_jax.data.tokenizers.tokenization import Tokenizer
from electra_jax.errors import UserError
from electra_jax.pretrain.resolve import resolve_run
from electra_jax.training import checkpoints, plugins, run_folder, versions
from electra_jax.training.kept_config import (
  CONFIG,
  another_config_error,
  changed_fields,
)
from electra_jax.training.run_folder import read_json_if_any, write_json

TRISTATE = {'auto': None, 'yes': True, 'no': False}  # values of three fields of config.data


#### The corpus ####


def prepare_data(
  config: PretrainingConfig,
  tokenizer: str | None = None,
  output: str | None = None,
  beam: str | None = None,
  take_over: bool = False,
) -> Prepared:
  """Opens the corpus of a config: `config.data.store`, or the prepared corpus, or a new one.

  Args:
    config: the run's config.
    tokenizer: a folder in place of `config.data.tokenizer`; None for that.
    output: see data.prepare.preparation.prepare_corpus.
    beam: see there.
    take_over: see there.

  Raises:
    UserError: the rows of the store do not have the config's length, or what
      data.prepare.preparation.prepare_corpus raises.
  """
  d = config.data
  if d.store:
    return _open_store(config)
  return prepare_corpus(
    _recipe(config, tokenizer),
    cache=d.cache,
    output=output,
    processes=d.workers,
    beam=beam,
    take_over=take_over,
    mixing=_mixing(config),
  )


def _recipe(config: PretrainingConfig, tokenizer: str | None) -> CorpusRecipe:
  """The recipe of a config's corpus; a folder replaces the tokenizer of the config."""
  d = config.data
  return CorpusRecipe(
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
    lowercase=TRISTATE[d.lowercase],
    strip_accents=TRISTATE[d.strip_accents],
    byte_fallback=TRISTATE[d.byte_fallback],
    normalization=d.normalization,
    casing=d.casing,
    tokenizer_options=d.tokenizer_options,
    tokenizer_characters=int(d.tokenizer_characters),
    add_special_tokens=d.add_special_tokens,
    segmenter=d.segmenter,
    allow_loss=d.allow_loss,
  )


def _mixing(config: PretrainingConfig) -> Mixing:
  return Mixing(tuple(map(float, config.data.weights)), config.data.mixture_temperature)


def _open_store(config: PretrainingConfig) -> Prepared:
  """Opens `config.data.store` and checks that the config can train on it."""
  d = config.data
  prepared = open_prepared(d.store, d.cache, _mixing(config))
  if prepared.train.length != config.sequence_length:
    raise UserError(
      f'config.data.store {d.store!r} has rows of {prepared.train.length} tokens and '
      f'config.sequence_length is {config.sequence_length}; expected equal lengths.'
    )
  return prepared


def prepare_texts(
  texts: Iterable[given_texts.Text],
  config: AnyConfig,
  output: str | os.PathLike[str] | None = None,
  field: str = 'text',
) -> Prepared:
  """Prepares texts that are given in Python; see `electra_jax.prepare`."""
  run = resolve_run(config)
  if run.config.data.store:
    raise UserError(
      'config.data.store names a corpus that is prepared already; expected none, to prepare texts.'
    )
  cache = run.config.data.cache
  folder = tempfile.gettempdir() if file_access.is_remote(cache) else file_access.normal(cache)
  with given_texts.written(texts, folder, field) as source:
    of_texts = run.config.replace({'data.source': source})
    return prepare_data(of_texts, run.tokenizer, output=None if output is None else str(output))


def prepare_only(
  config: AnyConfig,
  output: str | None = None,
  beam: str | None = None,
  take_over: bool = False,
) -> Prepared:
  """Makes the tokenizer and the rows of a config, and prints the report (--mode=prepare).

  Args:
    config: a ConfigDict, or a typed config.
    output: where to write; None for the cache.
    beam: runner of Apache Beam; None for worker processes of this machine.
    take_over: whether to take the folder from a process that works on it.

  Raises:
    UserError: the config names a corpus that is prepared, or what `prepare_data` raises.
  """
  run = resolve_run(config)
  if run.config.data.store:
    raise UserError(
      'config.data.store names a corpus that is prepared already; leave it empty to prepare one '
      'from config.data.source.'
    )
  console.heading(f'{run.config.name}: preparing')
  prepared = prepare_data(run.config, run.tokenizer, output=output, beam=beam, take_over=take_over)
  report = file_access.join(prepared.path, REPORT_FILE)
  console.line('\n' + file_access.read_bytes(report).decode(), always=True)
  with console.results():
    advice.print_advice(advice.advise(_recipe(run.config, run.tokenizer), prepared.tokenizer))
  console.say('report', report, always=True)
  store = f' and --config.data.store={prepared.path}' if output else ''
  console.say('next', f'python -m electra_jax.main with the same --config{store}')
  return prepared


def corpus_name(config: PretrainingConfig) -> str:
  """The corpus of a config, for messages."""
  return repr(config.data.store or config.data.source)


def data_identity(prepared: Prepared) -> str:
  """Identifies the rows that a run trains and evaluates on, whatever made them."""
  stores = (prepared.train, prepared.heldout)
  return '-'.join(store.identity for store in stores if store is not None)


def describe_phase(phase: Phase, prepared: Prepared) -> str:
  """Steps, tokens and epochs of a phase, for the console."""
  c = phase.config
  tokens = quantity(c.steps * c.batch_size * c.sequence_length)
  epochs = prepared.train.epochs(c.steps * c.batch_size)
  if isinstance(prepared.train, Mixture):
    sources = zip(epochs, prepared.facts['sources'], strict=True)
    passes = 'epochs of each source: ' + ', '.join(
      f'{count:,.1f} of {source["location"]}' for count, source in sources
    )
    shares = ', '.join(f'{weight:.1%}' for weight in prepared.train.weights)
    passes += f'; {shares} of the rows'
  else:
    passes = f'{epochs[0]:,.1f} epochs of the corpus'
  return f'{c.steps:,} steps of {c.batch_size} x {c.sequence_length} = {tokens} tokens, {passes}'


#### The folder ####


def claim_workdir(workdir: str | os.PathLike[str], config: PretrainingConfig) -> dict[str, Any]:
  """Takes a folder for the run of a config, or checks that it is the run's already.

  A folder without a checkpoint may be taken by another config.

  Args:
    workdir: the folder.
    config: the run's config; it is written to config.json.

  Returns:
    What an earlier start recorded in resolved.json; empty for none.

  Raises:
    UserError: the folder cannot be written or reached, or holds the run of another config.
  """
  folder = run_folder.folder(workdir)
  run_folder.check_writable(folder)
  resolved = folder / 'resolved.json'
  # A budget determines the steps.
  changed = changed_fields(folder, config, ('steps',) if has_budget(config) else ())
  if changed and checkpoints.any_saved(folder):
    raise another_config_error(folder, changed)
  if changed:  # a start that saved nothing does not bind the next one
    with file_access.reaching(resolved, 'removed'):
      resolved.unlink(missing_ok=True)
  recorded: dict[str, Any] = read_json_if_any(resolved) or {}
  steps = {'steps': recorded['steps']} if 'steps' in recorded else {}
  write_json(folder / CONFIG, to_plain(config) | steps)
  versions.record_versions(folder, resumed=checkpoints.any_saved(folder))
  plugins.record(folder, config.specs)
  return recorded


def check_vocabulary(workdir: str | os.PathLike[str], size: int, tokenizer: Tokenizer) -> None:
  """Checks that a tokenizer has as many tokens as that of a run's checkpoints.

  Args:
    workdir: the run's folder.
    size: tokens of the tokenizer that the run was started with.
    tokenizer: the tokenizer that was found now.

  Raises:
    UserError: it has another number.
  """
  if tokenizer.size != size:
    raise UserError(
      f'the tokenizer has {tokenizer.size:,} tokens, and {workdir} was started with one of '
      f'{size:,}; restore that tokenizer, or use another --workdir.'
    )


def keep_run_tokenizer(workdir: str | os.PathLike[str], tokenizer: Tokenizer) -> None:
  """Saves the tokenizer in the run's folder: at once on this machine, file by file in a bucket."""
  tokenizer_folders.keep_tokenizer(run_folder.folder(workdir) / 'tokenizer', tokenizer)
