"""From one vocabulary to another: new words, shared tokens, and the pieces of new tokens."""

import json
import re
import string

import made_tokenizers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_jax.data.tokenizers import sentencepiece_model, tokenization, vocabulary
from electra_jax.errors import UserError

KINDS = ('uncased', 'cased', 'unigram', 'unigram, bytes')
WORDS = [
  'photosynthesis',
  'Photosynthesis',
  'covid',
  'hydroxychloroquine',
  'zzxq',
  'the',
  'photo',
  'covid',
]
START = {'wordpiece': '', 'sentencepiece': '\u2581'}


@pytest.fixture(scope='module')
def sample():
  return made_tokenizers.sample_text(600_000)


@pytest.fixture(scope='module')
def trained(sample):
  texts, made = sample[:150_000].split('\n\n'), {}

  def get(kind, size=1000):
    if (kind, size) not in made:
      arguments = (
        {'kind': 'wordpiece', 'lowercase': kind == 'uncased'}
        if 'cased' in kind
        else {'kind': kind.split(',')[0], 'byte_fallback': 'bytes' in kind}
      )
      made[kind, size] = made_tokenizers.train(texts, vocab_size=size, **arguments)
    return made[kind, size]

  return get


@pytest.fixture(scope='module', params=KINDS)
def pair(request, trained):
  old = trained(request.param)
  return old, old.with_words(WORDS)


def token_of(tokenizer, word):
  return tokenizer.tokens.index(START[tokenizer.kind] + word)


#### New words ####


def test_ids_of_new_words_follow_the_present_ones(pair):
  old, new = pair
  cased = 'P' in ''.join(old.tokens[5:])
  words = [
    word for word in dict.fromkeys(WORDS) if word != 'the' and (cased or word != 'Photosynthesis')
  ]
  assert new.tokens[: old.size] == old.tokens and new.kind == old.kind
  assert list(new.tokens[old.size :]) == [START[old.kind] + word for word in words]
  assert new.special_ids == old.special_ids and new.fingerprint != old.fingerprint


def test_a_new_word_in_a_text_is_its_token(pair):
  old, new = pair
  for word in ('photosynthesis', 'covid', 'hydroxychloroquine', 'zzxq'):
    for text in (
      'The {} was known.',
      '{}',
      'What, "{}"?',
      'old-{} (or {}), and {}; {}!',
      'x' * 500 + ' {} ' + 'of ' * 5000,
    ):
      ids, before = new.encode(text.replace('{}', word)), old.encode(text.replace('{}', word))
      # After punctuation there is no space, so for SentencePiece the inside of a word follows.
      times = len(re.findall(r'(?:^|\s)\{\}' if new.kind == 'sentencepiece' else r'\{\}', text))
      assert ids.count(token_of(new, word)) == times, text
      assert len(ids) < len(before) or not times
      assert new.decode(ids) == new.decode(before)
  assert new.encode('photo photosynthesis') == [
    token_of(new, 'photo'),
    token_of(new, 'photosynthesis'),
  ]


def test_real_text_without_a_new_word_is_encoded_as_before(pair, sample):
  old, new = pair
  lines = [
    line
    for line in sample[150_000:].split('\n')
    if not re.search('photo|covid|hydrox|zzx', line, re.IGNORECASE)
  ]
  assert len(lines) > 800 and old.encode_batch(lines) == new.encode_batch(lines)


@settings(max_examples=50)
@given(text=st.text(st.characters(exclude_categories=['Cs']), max_size=40))
def test_any_text_without_a_new_word_is_encoded_as_before(pair, text):
  old, new = pair
  if not re.search('photo|covid|hydrox|zzx', old.decode(old.encode(text)), re.IGNORECASE):
    assert old.encode(text) == new.encode(text)


@pytest.mark.parametrize('kind', KINDS)
def test_a_longer_word_begins_with_the_new_token_where_it_was_split_there(trained, kind):
  old = trained(kind)
  new = old.with_words(['covid'])
  ids = new.encode('covids')
  assert ids[0] == token_of(new, 'covid') and len(ids) == 2
  inside = old.with_words(['##qqium'])
  assert inside.tokens[-1] == ('##qqium' if old.kind == 'wordpiece' else 'qqium')
  assert inside.encode('kaqqium')[-1] == old.size and old.encode('kaqq ium') == inside.encode(
    'kaqq ium'
  )


def test_any_words_can_be_added(trained):
  @settings(max_examples=40, deadline=None)
  @given(
    words=st.lists(
      st.text(string.ascii_lowercase, min_size=2, max_size=14), min_size=1, max_size=12
    ),
    kind=st.sampled_from(KINDS),
  )
  def holds(words, kind):
    old = trained(kind)
    new = old.with_words(words)
    assert new.tokens[: old.size] == old.tokens
    for word in words:
      assert new.encode(word) == [token_of(new, word)]
      assert new.encode(f'the {word} of') == [
        *old.encode('the'),
        token_of(new, word),
        *old.encode('of'),
      ]

  holds()


def test_words_are_normalized_as_text_is(trained):
  new = trained('uncased').with_words(['Éclair', 'STRASSE'])
  assert new.tokens[-2:] == ('eclair', 'strasse') and len(new.encode('éclair Eclair')) == 2
  assert trained('cased').with_words(['Éclair']).tokens[-1] == 'Éclair'
  assert trained('unigram').with_words(['\uff41\uff42\uff43d']).tokens[-1] == '\u2581abcd'


@pytest.mark.parametrize(
  'kind, word, reason',
  [
    ('uncased', '[MASK]', 'special token'),
    ('uncased', 'two words', "2 words for the tokenizer, 'two words'"),
    ('uncased', 'c++', '3 words'),
    ('uncased', '\u0301', 'normalization removes all'),
    ('uncased', 'x' * 101, 'more than 100'),
    ('uncased', '##.', 'never inside'),
    ('uncased', '##日本', '2 words'),
    ('unigram', '[MASK]', 'special token'),
    ('unigram', 'two words', '2 words'),
    ('unigram', '\x01', 'normalization removes all'),
    ('unigram', '日本', "no piece for '日'.* ##日 before it"),
    ('unigram, bytes', '##<0x41>', 'special piece'),
    ('unigram, bytes', 'ᚠᚢ', "no piece for 'ᚠ'"),
  ],
)
def test_words_that_cannot_become_tokens_are_refused(trained, kind, word, reason):
  with pytest.raises(UserError, match=reason) as caught:
    trained(kind).with_words(['fine', word])
  assert repr(word) in str(caught.value) and '\n' not in str(caught.value)


def test_missing_characters_can_be_added_first(trained):
  for kind in ('unigram', 'unigram, bytes'):
    old = trained(kind)
    new = old.with_words(['##日', '##本', '日本'])
    assert (
      new.tokens[-3:] == ('日', '本', '\u2581日本') and new.encode('日本 本日')[0] == old.size + 2
    )
    assert new.encode('本日')[1:] == [old.size + 1, old.size]


def test_new_words_are_refused_for_bpe(trained):
  with pytest.raises(UserError, match='not supported for a BPE vocabulary'):
    trained('bpe').with_words(['covid'])


def test_an_extended_tokenizer_can_be_saved_opened_and_exported(pair, tmp_path, sample):
  transformers = pytest.importorskip('transformers', reason='compares with transformers')
  from electra_jax.interop import tokenizer_files

  _, new = pair
  new.save(tmp_path / 'saved')
  assert tokenization.load_tokenizer(tmp_path / 'saved').fingerprint == new.fingerprint
  for name, content in tokenizer_files.files(new, None, True).items():
    (tmp_path / name).write_bytes(content)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  rare = ['photosynthesis, Photosynthesis; covid-covids hydroxychloroquines', 'ᚠ zzxqᚠcovid']
  texts = [*sample[150_000:250_000].split('\n'), *rare]
  found = theirs(texts, add_special_tokens=False)['input_ids']
  assert sum(a != b for a, b in zip(found, new.encode_batch(texts), strict=True)) <= (
    new.kind == 'sentencepiece'
  )  # a tie
  assert found[-2:] == new.encode_batch(texts[-2:])


def test_appending_pieces_keeps_the_rest_of_a_model_file(trained):
  old = trained('unigram').files['tokenizer.model']
  new = sentencepiece_model.append_pieces(old, [('\u2581日', -1.5), ('x' * 300, -20.25)])
  a, b = sentencepiece_model.parse_model(old), sentencepiece_model.parse_model(new)
  assert b.pieces == (*a.pieces, ('\u2581日', -1.5, 1), ('x' * 300, -20.25, 1))
  assert (a.model_type, a.charsmap, a.byte_fallback) == (
    b.model_type,
    b.charsmap,
    b.byte_fallback,
  ) and len(a.charsmap) > 100_000
  assert (
    sentencepiece_model.append_pieces(old, []) != b''
    and sentencepiece_model.parse_model(sentencepiece_model.append_pieces(old, [])) == a
  )


def test_a_vocabulary_with_added_tokens_is_refused(trained, tmp_path):
  trained('uncased').save(tmp_path)
  (tmp_path / 'added_tokens.json').write_text(json.dumps({'covid': 1000}))
  with pytest.raises(UserError, match='added with transformers'):
    tokenization.load_tokenizer(tmp_path).with_words(['more'])


#### Lists of words ####


def test_words_are_read_one_per_line(tmp_path):
  path = tmp_path / 'words.txt'
  path.write_bytes('\ufeffone\r\n\n  two \nÉclair\n##ing'.encode())
  assert (
    vocabulary.read_words(path)
    == vocabulary.read_words(str(path))
    == ['one', 'two', 'Éclair', '##ing']
  )


@pytest.mark.parametrize(
  'content, reason',
  [(None, 'does not exist'), (b'a\n\xff', 'not UTF-8 at byte 2'), (b' \n\n', 'is empty')],
)
def test_a_list_that_cannot_be_read_is_refused(tmp_path, content, reason):
  path = tmp_path / 'words.txt'
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(UserError, match=reason) as caught:
    vocabulary.read_words(path)
  assert str(path) in str(caught.value)


#### Shared tokens ####


def test_all_tokens_are_carried_over(pair):
  old, new = pair
  ids, added = vocabulary.carried_over(old, new)
  assert ids.dtype == np.int32 and ids.shape == (new.size,)
  assert ids.tolist() == [*range(old.size), *[-1] * (new.size - old.size)] and added == list(
    range(old.size, new.size)
  )


def test_tokens_are_matched_by_text_and_special_tokens_by_role(trained, tmp_path):
  old = trained('uncased')
  names = {'[PAD]': '<pad>', '[UNK]': '<unk>', '[CLS]': '<s>', '[SEP]': '</s>', '[MASK]': '<mask>'}
  lines = [names.get(token, token) for token in reversed(old.tokens)]
  lines[3] = 'brandnew'
  (tmp_path / 'vocab.txt').write_text('\n'.join(lines) + '\n', 'utf-8')
  roles = {f'{name[1:-1].lower()}_token': other for name, other in names.items()}
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(roles | {'do_lower_case': True}))
  new = tokenization.load_tokenizer(tmp_path)
  ids, added = vocabulary.carried_over(old, new)
  assert (
    added == [3]
    and ids[3] == -1
    and all(ids[i] == old.size - 1 - i for i in range(old.size) if i != 3)
  )


def test_another_vocabulary_is_refused(trained):
  known = len(set(trained('uncased').tokens) & set(trained('unigram').tokens))
  with pytest.raises(UserError, match=rf'only {known} of 1000 tokens .* another vocabulary'):
    vocabulary.carried_over(trained('unigram'), trained('uncased'))
  ids, _ = vocabulary.carried_over(trained('uncased', 700), trained('uncased'))
  assert 500 < (ids >= 0).sum() < 1000


def test_pieces_of_a_new_token_are_the_ids_of_its_text(pair):
  old, new = pair
  _, added = vocabulary.carried_over(old, new)
  pieces = vocabulary.pieces_of(old, new, added)
  for i, row in zip(added, pieces, strict=True):
    assert row.dtype == np.int32 and len(row) > 1
    assert row.tolist() == old.encode(new.tokens[i].removeprefix('\u2581'))


def test_pieces_of_a_token_inside_a_word_are_inside_a_word(trained):
  for kind in KINDS:
    old = trained(kind)
    new = old.with_words(['##ationing', 'stationing'])
    inside, whole = vocabulary.pieces_of(old, new, [old.size, old.size + 1])
    assert ''.join(old.tokens[i].removeprefix('##') for i in inside) == 'ationing'
    start = '' if old.kind == 'wordpiece' else '\u2581'
    assert ''.join(old.tokens[i].removeprefix('##') for i in whole) == start + 'stationing'


def test_a_token_without_known_characters_is_unknown(trained, tmp_path):
  old = trained('uncased')
  (tmp_path / 'vocab.txt').write_text(
    ''.join(f'{token}\n' for token in (*old.tokens, 'ᚠᚢ', '##ᚠ', 'aᚠ', '##cold')), 'utf-8'
  )
  new = tokenization.load_tokenizer(tmp_path)
  pieces = [row.tolist() for row in vocabulary.pieces_of(old, new, range(old.size, new.size))]
  assert (
    pieces[:3] == [[old.unk_id]] * 3
    and old.unk_id not in pieces[3]
    and ''.join(old.tokens[i].removeprefix('##') for i in pieces[3]) == 'cold'
  )


@settings(max_examples=50)
@given(data=st.data())
def test_pieces_are_never_missing(trained, data):
  old, new = (trained(data.draw(st.sampled_from(KINDS)), size) for size in (700, 1000))
  rows = vocabulary.pieces_of(old, new, data.draw(st.lists(st.integers(0, 999), max_size=50)))
  assert all(len(row) and row.min() >= 0 and row.max() < old.size for row in rows)
