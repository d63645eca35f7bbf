"""Tokenizers: encoding and decoding, special tokens, texts of any length, saving, errors."""

import json
import os
import pickle
import subprocess
import sys
import textwrap

import made_tokenizers
import pytest

from electra_jax import registry
from electra_jax.data.tokenizers import text_parts, tokenization
from electra_jax.errors import UserError

KINDS = tuple(registry.TOKENIZERS)
SPECIAL_TEXT = '[CLS] one [MASK] two [SEP] [PAD] [UNK] <s> </s> <unk> <pad> <mask>'
UNUSUAL_TEXTS = [
  '',
  ' ',
  '\n\t\n',
  '\0',
  'a\0b',
  '☃',
  'x' * 100_000,
  '日本\u2028\u3000',
  '\u2060',
  '\ufffd',
  'a' + '\u0301' * 999,
]


@pytest.fixture(scope='module')
def texts():
  return made_tokenizers.documents()


@pytest.fixture(scope='module')
def trained(texts):
  return {kind: made_tokenizers.train(texts, kind=kind, vocab_size=600) for kind in KINDS}


@pytest.fixture(params=KINDS)
def tokenizer(request, trained):
  return trained[request.param]


def test_special_tokens_have_the_first_ids(tokenizer):
  assert (
    tokenizer.tokens[:5]
    == tokenization.SPECIAL_TOKENS
    == ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')
  )
  ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
  assert ids == tokenizer.special_ids == (0, 1, 2, 3, 4)
  assert tokenizer.size == len(tokenizer.tokens) == len(set(tokenizer.tokens)) == 600


def test_english_text_survives_encoding_and_decoding(trained):
  for text in (
    'The old man had listed hundreds of truths.',
    'He said: "1,234.50 (or so) [sic] <b> {x} ~ ^ \\ | @ #"',
  ):
    for kind, tokenizer in trained.items():
      ids = tokenizer.encode(text)
      assert tokenizer.unk_id not in ids
      decoded = tokenizer.decode(ids)
      if kind == 'wordpiece':  # lower-cased, and without spaces around punctuation
        assert decoded.replace(' ', '') == text.lower().replace(' ', '')
      else:
        assert decoded == text


def test_names_of_special_tokens_in_a_text_are_text(tokenizer):
  ids = tokenizer.encode(SPECIAL_TEXT)
  assert not set(ids) & set(tokenizer.special_ids)
  if tokenizer.kind == 'sentencepiece':
    assert tokenizer.decode(ids) == SPECIAL_TEXT


def test_decode_writes_special_tokens_and_skips_padding(tokenizer):
  ids = [
    tokenizer.cls_id,
    *tokenizer.encode('the man'),
    tokenizer.mask_id,
    tokenizer.sep_id,
    *[tokenizer.pad_id] * 2,
  ]
  assert tokenizer.decode(ids) == '[CLS] the man [MASK] [SEP]'
  assert tokenizer.decode(ids, special_tokens=False) == 'the man'
  assert tokenizer.token(tokenizer.mask_id) == '[MASK]'


@pytest.mark.parametrize('text', UNUSUAL_TEXTS, ids=lambda text: ascii(text[:10]))
def test_unusual_text_encodes(tokenizer, text):
  ids = tokenizer.encode(text)
  assert all(
    0 <= i < tokenizer.size and (i == tokenizer.unk_id or i not in tokenizer.special_ids)
    for i in ids
  )
  tokenizer.decode(ids)


def test_lone_surrogates_count_as_replacement_characters(tokenizer):
  replaced = tokenizer.encode_batch(['a \ufffd b', 'fine', '\ufffd\ufffd'])
  assert tokenizer.encode_batch(['a \ud800 b', 'fine', '\udfff\ud800']) == replaced


def test_a_batch_has_the_ids_of_its_texts(tokenizer, texts):
  for threads in (None, 1, 2):
    assert tokenizer.encode_batch(texts[:4], threads) == [
      tokenizer.encode(text) for text in texts[:4]
    ]
    assert tokenizer.encode_batch([], threads) == [] and tokenizer.encode_batch(
      ['', ''], threads
    ) == [[], []]


#### Long texts ####


def split_and_whole(tokenizer, text, monkeypatch):
  """Ids of a text that is encoded in parts, and of the whole text."""
  monkeypatch.setattr(text_parts, 'LONG_TEXT', 3000)
  monkeypatch.setattr(text_parts, 'CALL_CHARACTERS', 10_000)
  cut = tokenizer.encode_batch(['before', text, '', text[:5000], 'after'])
  assert cut[::2] == tokenizer.encode_batch(['before', '', 'after']) and cut[3] == tokenizer.encode(
    text[:5000]
  )
  monkeypatch.setattr(text_parts, 'LONG_TEXT', 10**9)
  return cut[1], tokenizer.encode(text)


@pytest.mark.parametrize('kind', ['bpe', 'wordpiece'])
def test_splitting_a_long_text_at_white_space_changes_no_id(trained, kind, texts, monkeypatch):
  cut, whole = split_and_whole(trained[kind], '\n\n'.join(texts), monkeypatch)
  assert cut == whole and len(whole) > 30_000


def test_splitting_a_long_text_changes_ids_of_a_unigram_model_only_at_ties(
  trained, texts, monkeypatch
):
  """A unigram model sums scores in float32 along a text, which decides between equal splits."""
  import sentencepiece

  tokenizer = trained['unigram']
  model = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.files['tokenizer.model'])
  ways = [
    split_words(tokenizer, ids)
    for ids in split_and_whole(tokenizer, '\n\n'.join(texts), monkeypatch)
  ]
  assert len(ways[0]) == len(ways[1]) > 20_000
  differing = [pair for pair in zip(*ways, strict=True) if pair[0] != pair[1]]
  assert len(differing) < 10
  for cut, whole in differing:
    assert ''.join(map(tokenizer.token, cut)) == ''.join(map(tokenizer.token, whole))
    assert abs(sum(map(model.get_score, cut)) - sum(map(model.get_score, whole))) < 0.1


def split_words(tokenizer, ids):
  words = []
  for i in ids:
    if tokenizer.token(i).startswith('▁'):
      words.append([])
    words[-1].append(i)
  return words


def test_a_long_text_without_white_space_is_encoded_completely(trained, monkeypatch):
  text = ''.join(chr(ord('a') + i * i % 26) for i in range(10_000))
  for kind in ('unigram', 'bpe'):
    cut, _ = split_and_whole(trained[kind], text, monkeypatch)
    assert trained[kind].decode(cut).replace(' ', '') == text
  cut, whole = split_and_whole(trained['wordpiece'], text, monkeypatch)
  assert set(cut) == {trained['wordpiece'].unk_id} == set(whole)


def output_of_new_process(code, *arguments):
  """What code prints in a new process, in which `peak()` is its largest memory so far, in MB."""
  if not os.path.exists('/proc/self/status'):
    pytest.skip('requires /proc')
  start = """
    import os, re, sys, threading
    from electra_jax.data.tokenizers import text_parts, tokenization
    def peak():
      return int(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]) / 1024
    tokenizer = tokenization.load_tokenizer(sys.argv[1])
  """
  code = textwrap.dedent(start) + textwrap.dedent(code)
  done = subprocess.run(
    [sys.executable, '-c', code, *map(str, arguments)], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.mark.parametrize('kind, most', [('unigram', 100), ('wordpiece', 250)])
def test_a_line_of_five_megabytes_takes_little_memory(trained, kind, most, tmp_path):
  trained[kind].save(tmp_path)
  code = """
    line = 'the old man had listed hundreds of truths ' * 120_000
    before = peak()
    ids = tokenizer.encode_batch([line])[0]
    assert ids == tokenizer.encode(line[:42]) * 120_000
    print(peak() - before)
  """
  # 48 MB and 125 MB, including the lists of ids. Without splitting, it is 110 MB more for unigram
  # and 400 MB more for WordPiece.
  assert float(output_of_new_process(code, tmp_path)) < most


@pytest.mark.parametrize('kind', ['unigram', 'wordpiece'])
def test_one_thread_starts_no_other(trained, kind, tmp_path):
  trained[kind].save(tmp_path)
  code = """
    def alive():
      return len(os.listdir('/proc/self/task'))
    def most(threads):
      counts, done, before = [], threading.Event(), alive()
      def watch():
        while not done.is_set():
          counts.append(alive())
      watcher = threading.Thread(target=watch)
      watcher.start()
      texts = [' '.join(f'word{i}of{j}at{threads}' for i in range(300)) for j in range(200)]
      tokenizer.encode_batch(texts, threads)
      done.set()
      watcher.join()
      return max(counts) - before - 1
    print(most(1), most(2))
  """
  one, two = map(int, output_of_new_process(code, tmp_path).split())
  assert one == 0 and two > 0


#### Saving and loading ####


def test_saved_and_pickled_tokenizers_are_the_same(tokenizer, texts, tmp_path):
  places = [tmp_path / 'new' / 'folder', 'memory://tokenizers/saved']
  for place in places:
    tokenizer.save(place)
  loaded = map(tokenization.load_tokenizer, places)
  for other in (*loaded, pickle.loads(pickle.dumps(tokenizer))):
    assert other.fingerprint == tokenizer.fingerprint and other.tokens == tokenizer.tokens
    assert other.encode(texts[0]) == tokenizer.encode(texts[0])
  import fsspec

  fsspec.filesystem('memory').rm('/tokenizers', recursive=True)


def test_a_single_file_can_be_opened(trained, tmp_path):
  trained['bpe'].save(tmp_path / 'bpe')
  assert (
    tokenization.load_tokenizer(tmp_path / 'bpe/tokenizer.model').fingerprint
    == trained['bpe'].fingerprint
  )
  trained['wordpiece'].save(tmp_path / 'wordpiece')
  assert (
    tokenization.load_tokenizer(tmp_path / 'wordpiece/vocab.txt').fingerprint
    == trained['wordpiece'].fingerprint
  )
  vocabulary = (tmp_path / 'wordpiece/vocab.txt').read_text()
  (tmp_path / 'windows.txt').write_bytes(
    b'\xef\xbb\xbf' + vocabulary.replace('\n', '\r\n').encode()
  )
  assert (
    tokenization.load_tokenizer(tmp_path / 'windows.txt').fingerprint
    == trained['wordpiece'].fingerprint
  )


def test_special_tokens_have_their_ids_in_the_vocabulary(tmp_path):
  tokens = ['a', '[MASK]', 'b', '[SEP]', '[CLS]', '##a', '[UNK]', '[', ']', 'mask', '[PAD]']
  (tmp_path / 'vocab.txt').write_text('\n'.join(tokens))
  tokenizer = tokenization.load_tokenizer(tmp_path / 'vocab.txt')
  ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
  assert ids == (10, 6, 4, 3, 1) and tokenizer.special_ids == (1, 3, 4, 6, 10)
  assert tokenizer.encode('A [MASK] baa c') == [0, 7, 9, 8, 2, 5, 5, 6]


def test_other_models_open_if_their_special_tokens_are_found(texts, tmp_path):
  lines = [line for text in texts[:3] for line in text.split('\n')]
  (tmp_path / 'spiece.model').write_bytes(
    made_tokenizers.sentencepiece_model(lines, pad_id=3, user_defined_symbols=['<mask>'])
  )
  tokenizer = tokenization.load_tokenizer(tmp_path)
  ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
  assert ids == (3, 0, 1, 2, 4) and tokenizer.token(tokenizer.mask_id) == '<mask>'
  encoded = tokenizer.encode('the <mask> man <s>')  # SentencePiece itself gives the id of <mask>
  assert not set(encoded) & {1, 2, 3, 4} and encoded.count(tokenizer.unk_id) >= 1
  (tmp_path / 'spiece.model').write_bytes(made_tokenizers.sentencepiece_model(lines))
  with pytest.raises(
    UserError, match=r'lacks \[PAD\] or <pad>, \[MASK\] or <mask>; use a tokenizer that'
  ):
    tokenization.load_tokenizer(tmp_path)


#### Errors ####


def test_a_missing_or_damaged_tokenizer_is_refused(trained, tmp_path):
  def refused(*arguments):
    return str(pytest.raises(UserError, tokenization.load_tokenizer, *arguments).value)

  assert 'no tokenizer in' in refused(tmp_path)
  assert 'does not exist' in refused(tmp_path / 'missing')
  assert 'does not exist' in refused('memory://nowhere/tokenizer')
  (tmp_path / 'tokenizer.model').write_bytes(b'not a model')
  assert 'not a SentencePiece model or is damaged' in refused(tmp_path)
  (tmp_path / 'words.txt').write_text('the\nold\nman\n')
  assert 'lacks [PAD], [UNK], [CLS], [SEP], [MASK]' in refused(tmp_path / 'words.txt')
  (tmp_path / 'words.txt').write_bytes(trained['bpe'].files['tokenizer.model'])
  assert 'not UTF-8' in refused(tmp_path / 'words.txt')


def test_contradicting_settings_are_refused(trained, tmp_path):
  def refused(*arguments):
    return str(pytest.raises(UserError, tokenization.load_tokenizer, *arguments).value)

  trained['bpe'].save(tmp_path / 'bpe')
  assert 'has its own normalization' in refused(tmp_path / 'bpe', True)
  trained['wordpiece'].save(tmp_path / 'saved')
  assert 'lowercase is False, but' in refused(tmp_path / 'saved', False)
  assert 'strip_accents is False, but' in refused(tmp_path / 'saved', None, False)
  assert (
    tokenization.load_tokenizer(tmp_path / 'saved', True, True).fingerprint
    == trained['wordpiece'].fingerprint
  )
  for name, content, complaint in [
    ('tokenizer_config.json', '{', 'is damaged'),
    (
      'tokenizer_config.json',
      json.dumps({'tokenizer_class': 'BertJapaneseTokenizer'}),
      'is a BertJapaneseTokenizer',
    ),
    ('tokenizer.json', json.dumps({'model': {'type': 'BPE'}}), 'cannot be opened by tokenizers'),
  ]:
    (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / name / name).write_text(content)
    if name == 'tokenizer_config.json':
      (tmp_path / name / 'vocab.txt').write_bytes(trained['wordpiece'].files['vocab.txt'])
    assert complaint in refused(tmp_path / name)


def test_a_cased_vocabulary_requires_a_setting(texts, tmp_path):
  cased = made_tokenizers.train(texts, kind='wordpiece', vocab_size=600, lowercase=False)
  (tmp_path / 'vocab.txt').write_bytes(cased.files['vocab.txt'])
  with pytest.raises(UserError, match='have capitals, .* set lowercase to no'):
    tokenization.load_tokenizer(tmp_path)
  assert tokenization.load_tokenizer(tmp_path, lowercase=False).fingerprint == cased.fingerprint
  assert tokenization.load_tokenizer(tmp_path, lowercase=True).encode('THE man') == cased.encode(
    'the man'
  )
