"""Rows of a corpus that a run was not trained on, for its evaluation there."""

import dataclasses
import hashlib
import pathlib
import re

from electra_jax.config import PretrainingConfig
from electra_jax.data.prepare.finished import read_facts
from electra_jax.data.prepare.preparation import HeldoutSource, open_prepared, prepare_corpus
from electra_jax.data.prepare.recipe import CorpusRecipe
from electra_jax.data.store.token_store import Store
from electra_jax.data.tokenizers.tokenization import Tokenizer
from electra_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationCorpus:
  """Rows to evaluate a run on.

  Attributes:
    store: the rows.
    sources: of a mixture, in the order of the rows; empty for one source.
    name: as it was given; None for the held-out rows of the run.
  """

  store: Store
  sources: tuple[HeldoutSource, ...] = ()
  name: str | None = None

  @property
  def result_file(self) -> str:
    """The file of results: evaluation.json, or with a short name of the corpus."""
    if self.name is None:
      return 'evaluation.json'
    stem = pathlib.PurePath(self.name.rstrip('/')).name.split('.')[0]
    short = re.sub(r'[^A-Za-z0-9_-]+', '_', stem).strip('_')
    digest = hashlib.blake2b(self.name.encode(errors='surrogateescape'), digest_size=4)
    return f'evaluation-{short[:40]}-{digest.hexdigest()}.json'


def open_corpus(
  source: str, config: PretrainingConfig, tokenizer: Tokenizer, tokenizer_folder: str
) -> EvaluationCorpus:
  """Opens a corpus with the tokenizer of a run. The run's own corpus is not read.

  All documents of files are rows to evaluate; of a prepared corpus those that it holds out, or all
  where it holds none out.

  Args:
    source: as config.data.source, or the folder or address of a prepared corpus.
    config: of the run. Its config.data has the cache, document_format and invalid_utf8.
    tokenizer: of the run.
    tokenizer_folder: that it was opened from.

  Raises:
    UserError: the corpus cannot be read, or its rows are those of another tokenizer or length.
  """
  d = config.data
  if read_facts(source) is not None:
    prepared = open_prepared(source, d.cache)
  else:
    recipe = CorpusRecipe(
      source=source,
      row_length=config.sequence_length,
      document_format=d.document_format,
      heldout_fraction=0.0,
      invalid_utf8=d.invalid_utf8,
      row_format=d.row_format,
      seed=d.seed,
      tokenizer=tokenizer_folder,
    )
    prepared = prepare_corpus(recipe, cache=d.cache, processes=d.workers)
  if prepared.tokenizer.fingerprint != tokenizer.fingerprint:
    raise UserError(
      f'the corpus {source!r} was prepared with another tokenizer than that of the run; prepare it '
      f'with --config.data.tokenizer={tokenizer_folder}, or name its files.'
    )
  if prepared.heldout is not None:
    store, sources = prepared.heldout, prepared.heldout_sources
  elif isinstance(prepared.train, Store):
    store, sources = prepared.train, ()
  else:
    raise UserError(
      f'the corpus {source!r} is a mixture without held-out rows; evaluate its sources one by one.'
    )
  if store.length != config.sequence_length:
    raise UserError(
      f'the corpus {source!r} has rows of {store.length} tokens and the run rows of '
      f'{config.sequence_length}; expected equal lengths.'
    )
  return EvaluationCorpus(store, sources, source)
