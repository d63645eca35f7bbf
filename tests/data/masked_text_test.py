"""Around a mask, a text has the tokens that it has around the masked word."""

import foreign_tokenizers
import made_tokenizers
import pytest

from electra_jax.data.tokenizers import tokenization
from electra_jax.interop import tokenizer_files

transformers = pytest.importorskip('transformers', reason='compares with transformers')

OWN = {
  'wordpiece': {'kind': 'wordpiece'},
  'unigram': {'kind': 'unigram', 'normalization': 'auto'},
  'bpe': {'kind': 'bpe', 'normalization': 'original'},
  'byte_level_bpe': {'kind': 'byte_level_bpe'},
}
# Of other projects. The first two take the space before a mask into it; the others put ▁ after a
# mask or before it, in their own files, which are exported as they are.
FAITHFUL = ('roberta', 'modernbert', 'bert')
FOREIGN = (*FAITHFUL, 'albert', 'xlm_roberta', 'deberta_v3', 'gemma')
# Text, and the word to mask.
CASES = [
  ('The old man said, then left.', 'man'),
  ('He said that.', 'that'),
  ('the man, and the woman', 'man'),
  ('the man', 'the'),
  ('(the man)', 'man'),
  ('"the" man', 'the'),
  ('said: the man!', 'the'),
  ('the man\u2014and that', 'man'),
]


@pytest.fixture(scope='module', params=[*OWN, *FOREIGN])
def pair(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp('tokenizer')
  if request.param in OWN:
    settings = {'vocab_size': 1500} | OWN[request.param]
    ours = made_tokenizers.train(made_tokenizers.documents(), **settings)
  else:
    ours = tokenization.load_tokenizer(foreign_tokenizers.write(request.param, folder / 'theirs'))
  for name, content in tokenizer_files.files(ours, 64, token_types=False).items():
    (folder / name).write_bytes(content)
  return request.param, ours, transformers.AutoTokenizer.from_pretrained(folder)


def test_a_masked_word_is_one_token_and_the_rest_is_unchanged(pair):
  name, ours, theirs = pair
  mask = ours.token(ours.mask_id)
  compared = 0
  for text, word in CASES:
    before, after = text.split(word, 1)
    found = ours.encode_around_masks([before, after])
    assert found == theirs(f'{before}{mask}{after}', add_special_tokens=False)['input_ids'], text
    ids, spans = ours.encode_with_offsets([text])[0]
    place = (len(before), len(before) + len(word))
    at = [i for i, span in enumerate(spans.tolist()) if tuple(span) == place]
    if len(at) == 1 and (name in OWN or name in FAITHFUL):  # the word is one token
      expected = [ours.mask_id if i == at[0] else int(token) for i, token in enumerate(ids)]
      assert found == expected, text
      compared += 1
  assert compared >= 2 or name not in OWN


def test_several_masks_and_names_of_other_special_tokens(pair):
  _, ours, theirs = pair
  mask, sep = ours.token(ours.mask_id), ours.token(ours.sep_id)
  found = ours.encode_around_masks(['', ' the ', ''])
  assert found == theirs(f'{mask} the {mask}', add_special_tokens=False)['input_ids']
  assert found.count(ours.mask_id) == 2
  assert ours.sep_id not in ours.encode_around_masks([f'{sep} ', f' {sep}'])


def test_offsets_of_exports_have_no_spaces(pair):
  name, _, theirs = pair
  if name not in OWN and name not in FAITHFUL:
    pytest.skip('the file of another project is exported as it is, with its offsets')
  for text, _ in CASES:
    spans = theirs(text, add_special_tokens=False, return_offsets_mapping=True)['offset_mapping']
    assert all(text[a:b] == text[a:b].strip() for a, b in spans), text
