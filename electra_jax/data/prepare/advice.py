"""Numbers on the tokenizer of a corpus, beside others that are trained on a sample of it."""

import contextlib
import dataclasses
import io
from collections.abc import Sequence

from electra_jax import registry
from electra_jax.console import say
from electra_jax.data.corpus import corpora
from electra_jax.data.prepare.recipe import CorpusRecipe
from electra_jax.data.tokenizers import character_losses, comparison, loss_report, tokenization
from electra_jax.data.tokenizers.comparison import Measures
from electra_jax.data.tokenizers.tokenization import Tokenizer
from electra_jax.data.tokenizers.tokenizer_settings import UnsupportedSize
from electra_jax.errors import UserError

# Characters that alternatives are trained and all are measured on, read from the beginning of each
# source.
SAMPLE = 300_000
ALTERNATIVES = 2
# From this size of a source on, its beginning is checked before the work starts.
LARGE_BYTES = 100_000_000
# An alternative gets the size that the sample supports, which may take several attempts.
_ATTEMPTS = 4
_SCRIPTS_SHOWN = 6


@dataclasses.dataclass(frozen=True)
class Advice:
  """A corpus's scripts, and tokenizers measured on a sample of it.

  Attributes:
    characters: of the sample.
    scripts: with their shares of the letters.
    rows: name and measures of each tokenizer, the corpus's own first.
  """

  characters: int
  scripts: list[tuple[str, float]]
  rows: list[tuple[str, Measures]]


def advise(recipe: CorpusRecipe, tokenizer: Tokenizer) -> Advice:
  """Measures a tokenizer and alternatives on a sample of a corpus.

  Args:
    recipe: of the corpus.
    tokenizer: of the corpus.
  """
  texts = _sample(recipe)
  rows = [(f'this corpus: {recipe.tokenizer}', comparison.measure(tokenizer, texts))]
  for kind in _alternatives(recipe):
    trained = _trained(recipe, kind, tokenizer.size, texts)
    if trained is not None:
      rows.append((f'{kind}, on the sample', comparison.measure(trained, texts)))
  return Advice(sum(map(len, texts)), comparison.scripts(texts), rows)


def print_advice(advice: Advice) -> None:
  """Prints a table of the tokenizers."""
  shown = [f'{name} {share:.1%}' for name, share in advice.scripts[:_SCRIPTS_SHOWN]]
  say('scripts', ', '.join(shown) or 'no letters')
  say('tokenizers', f'compared on {advice.characters:,} characters of the corpus:')
  for line in measures_table(advice.rows):
    print(f'    {line}')
  say('', 'docs/languages.md lists the tokenizer that is recommended for each script.')


def measures_table(rows: Sequence[tuple[str, Measures]]) -> list[str]:
  """Lines of a table of tokenizers."""
  cells = [
    ['tokenizer', 'size', 'tokens per word', 'per character', 'words whole', 'characters lost'],
    *(
      [
        name,
        f'{found.size:,}',
        f'{found.tokens_per_word:.2f}',
        f'{found.tokens_per_character:.3f}',
        f'{found.whole_share:.1%}',
        f'{found.losses.lost_share:.2%}',
      ]
      for name, found in rows
    ),
  ]
  widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
  return [
    '  '.join(
      cell.rjust(width) if i else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    for row in cells
  ]


def check_beginnings(
  recipe: CorpusRecipe, groups: Sequence[corpora.Group], tokenizer: Tokenizer
) -> None:
  """Refuses a large source of whose beginning much is lost, before hours of work.

  Sources that are read in a minute are checked when they are counted.

  Args:
    recipe: of the corpus.
    groups: all groups of the corpus.
    tokenizer: of the corpus.

  Raises:
    LostText: much of a beginning is lost.
  """
  sources = corpora.parse_sources(recipe.source, recipe.document_format)
  for index, source in enumerate(sources):
    of_source = [group for group in groups if group.source_index == index]
    if sum(group.bytes for group in of_source) < LARGE_BYTES:
      continue
    texts = _beginning(of_source, recipe.invalid_utf8, SAMPLE)
    losses = character_losses.count(tokenizer, texts, threads=None)
    what = f'the beginning of the source {source.location!r}'
    remedy = loss_report.loss_remedy(losses, tokenizer)
    loss_report.require_kept(losses, what, remedy, loss_report.CORPUS_FLAG)


def _sample(recipe: CorpusRecipe) -> list[str]:
  """Parts of documents from the beginning of each source."""
  sources = corpora.parse_sources(recipe.source, recipe.document_format)
  groups = corpora.groups(sources)
  size = SAMPLE // len(sources)
  found: list[str] = []
  for index in range(len(sources)):
    of_source = [group for group in groups if group.source_index == index]
    texts = _beginning(of_source, recipe.invalid_utf8, 4 * size)
    found += character_losses.sample_texts(texts, size)
  return found


def _beginning(groups: Sequence[corpora.Group], invalid_utf8: str, characters: int) -> list[str]:
  """Documents from the beginning of groups, of at least a number of characters; or all."""
  found: list[str] = []
  left = characters
  for group in groups:
    for text in corpora.documents(group, invalid_utf8):
      found.append(text[: max(left, 0)])
      left -= len(text)
      if left <= 0:
        return found
  return found


def _alternatives(recipe: CorpusRecipe) -> list[str]:
  """Names of kinds that the package trains, other than the corpus's."""
  own = [name for name in registry.TOKENIZERS if not registry.TOKENIZERS.entry(name).file]
  return [name for name in own if name != recipe.tokenizer][:ALTERNATIVES]


def _trained(recipe: CorpusRecipe, kind: str, size: int, texts: Sequence[str]) -> Tokenizer | None:
  """A tokenizer of a kind, as large as the sample supports up to a size; None for no size."""
  settings = dataclasses.replace(
    recipe.tokenizer_settings, kind=kind, byte_fallback=None, options=None
  )
  for _ in range(_ATTEMPTS):
    try:
      with contextlib.redirect_stdout(io.StringIO()):
        return tokenization.train_tokenizer(texts, dataclasses.replace(settings, vocab_size=size))
    except UnsupportedSize as error:
      size = error.supported
    except UserError:  # too little text for this kind
      return None
  return None
