"""Reads corpora as preparation does, for tests of the corpus formats."""

import pytest

from electra_jax.data.corpus import corpora
from electra_jax.errors import UserError


def read(source, document_format='blank_line', **kwargs):
  """Returns the documents of a source and what was counted.

  Checks that `advance` is called with all bytes of the groups.
  """
  groups = corpora.groups(corpora.parse_sources(str(source), document_format))
  counts = {}
  sizes = []
  texts = [
    text
    for group in groups
    for text in corpora.documents(group, advance=sizes.append, counts=counts, **kwargs)
  ]
  assert sum(sizes) == sum(group.bytes for group in groups)
  return texts, counts


def refusal(source, *args, **kwargs):
  """Returns the sentence of the UserError that reading a source raises."""
  with pytest.raises(UserError) as caught:
    read(source, *args, **kwargs)
  sentence = str(caught.value)
  assert '\n' not in sentence
  return sentence


def identity(source, document_format='blank_line'):
  """Returns the identity of a corpus."""
  return corpora.corpus_identity(corpora.parse_sources(str(source), document_format))
