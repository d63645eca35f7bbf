"""Rows of two texts have the separators of the tokenizer, as in transformers."""

import foreign_tokenizers
import numpy as np
import pytest
import transformers

from electra_jax.data.tokenizers.tokenization import load_tokenizer
from electra_jax.finetune.tasks import text_rows
from electra_jax.interop import tokenizer_files

PAIR = ('the quick brown fox', 'a lazy dog sleeps here')


@pytest.mark.parametrize(
  'form, separators',
  [('bert', 1), ('modernbert', 1), ('deberta_v3', 1), ('roberta', 2), ('xlm_roberta', 2)],
)
def test_pairs_are_those_of_transformers_before_and_after_an_export(form, separators, tmp_path):
  foreign_tokenizers.write(form, tmp_path / 'theirs')
  ours = load_tokenizer(tmp_path / 'theirs')
  assert ours.separators == separators
  expected = transformers.AutoTokenizer.from_pretrained(tmp_path / 'theirs')(*PAIR)['input_ids']
  (row,), _ = text_rows.token_rows(PAIR[:1], PAIR[1:], ours, 64)
  assert row.tolist() == expected
  # Rows that are cut fit, too.
  (short,), _ = text_rows.token_rows(PAIR[:1], PAIR[1:], ours, 12)
  assert len(short) == 12 and np.count_nonzero(short == ours.sep_id) == separators + 1
  for types in (False, True):
    folder = tmp_path / f'types {types}'
    folder.mkdir()
    for name, content in tokenizer_files.files(ours, 64, types).items():
      (folder / name).write_bytes(content)
    again = load_tokenizer(folder)
    assert again.separators == separators
    found = transformers.AutoTokenizer.from_pretrained(folder)(*PAIR)
    assert found['input_ids'] == expected
    if types:
      first = expected.index(ours.sep_id) + 1
      assert found['token_type_ids'] == [0] * first + [1] * (len(expected) - first)
