"""WordPiece ids are those of BertTokenizerFast of transformers, for cased and uncased text."""

import json
import pathlib
import shutil

import made_tokenizers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_jax.data.tokenizers import tokenization

transformers = pytest.importorskip('transformers', reason='compares with transformers')

BERT_VOCABULARY = pathlib.Path(__file__).parents[2] / '../shared/data/vocab/bert-base-uncased.txt'
SETTINGS = {
  'uncased': (True, None),
  'uncased with accents': (True, False),
  'cased': (False, None),
  'cased without accents': (False, True),
}

HOSTILE = [
  '',
  ' ',
  '\t\r\n\f\v',
  '\0',
  'a\0b',
  '\0\0\0',
  '\ufffd',
  'a\ufffdb',
  '\ufeffBOM',
  '\x7f\x80\x85\x9f',
  'soft\xadhyphen',
  'zero\u200bwidth\u200cjoin\u200ders\u2060',
  '\u202eright to left\u202c',
  'line\u2028para\u2029graph',
  '\U000e0041tag',
  '\ue000private',
  'tabs\tand\r\nlines\rand\xa0no-break\u2009thin\u3000wide\u1680ogham\u180emongol',
  '😀',
  '👩‍👩‍👧‍👦 family',
  '🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f',
  '👍🏽👍',
  '1️⃣ #️⃣ ☃️',
  '🇫🇷🇩🇪',
  '日本語の文章。',
  '中文，没有空格',
  '中a文b',
  '𠀀𪜶 㐀 豈 \u2f00',
  'カタカナ ｶﾞ がぎぐ か\u3099',
  '한국어 텍스트',
  '\u1112\u1161\u11ab',
  'ﬁ ﬂ ﬃ',
  'العربية مَعَ التَّشْكِيل',
  'हिन्दी क्षत्रिय',
  'ภาษาไทย น้ำ',
  'עִבְרִית',
  'தமிழ்',
  'ελληνικά ΤΈΛΟΣ ΣΑΣ ς',
  'Ёлка й И\u0306',
  'Tiếng Việt ơ\u0323\u0301',
  'İstanbul ıI ǅ ẞ ß ŉ Ŀ',
  'café cafe\u0301 naïve Ångström A\u030a \u212b',
  'Z\u0300\u0301\u0302\u0303\u0304\u0305algo',
  '\u0301starts',
  'a \u0301 b',
  'e\u0327\u0301 e\u0301\u0327',
  '①²½Ⅷ ℌ ㎏',
  '𝔊𝔬𝔱𝔥𝔦𝔠 𝟙𝟚',
  '１２３ ＡＢＣ',
  'x' * 100,
  'x' * 101,
  'a' * 99 + '\u0301' * 5,
  'é' * 100,
  '\u0301' * 500,
  'ab' * 5000,
  '-' * 300,
  'a-' * 300,
  '日' * 300,
  '!"#$%&\'()*+,-./:;<=>?@[\\]^_`{|}~',
  '«»‹›„“”‘’‚—–…¿¡·•†‡§¶',
  '。、「」『』【】〜',
  '$1,234.50',
  "don't I'll o'clock",
  'a_b.c/d\\e',
  '€£¥₿ ∀∃∑ ≠≤ ←→',
  '[MASK]',
  '[CLS] one [SEP] two [PAD]',
  'a[MASK]b',
  '[ MASK ] [mask] [UNK] [unk]',
  '[unused5] ##ing ## #',
  '<s> </s> <mask>',
  '[[MASK]]',
  'İ' * 50,
  '\U0010ffff',
  '\ufdd0',
  'ⱥȺ',
  'ꙮ',
  'a\u0345',
  'ᾳ',
  'ŉ',
  '\u1e9e',
]
CHARACTERS = st.characters(exclude_categories=['Cs'])  # all but surrogates


@pytest.fixture(scope='module', params=['trained here', 'BERT'])
def vocabulary(request, tmp_path_factory):
  """A vocab.txt: a small one with characters of many scripts, and the published one."""
  if request.param == 'BERT':
    if not BERT_VOCABULARY.exists():
      pytest.skip('requires the BERT vocabulary in ../shared/data/vocab')
    return BERT_VOCABULARY
  folder = tmp_path_factory.mktemp('trained')
  texts = [
    made_tokenizers.sample_text(300_000),
    *(part for text in HOSTILE for part in [text] * 20),
  ]
  trained = made_tokenizers.train(
    texts, kind='wordpiece', vocab_size=3000, lowercase=False, strip_accents=False
  )
  trained.save(folder)
  return folder / 'vocab.txt'


@pytest.fixture(scope='module', params=SETTINGS)
def pair(request, vocabulary, tmp_path_factory):
  """Our tokenizer and that of transformers, from the same vocabulary and settings."""
  lowercase, strip_accents = SETTINGS[request.param]
  ours = tokenization.load_tokenizer(vocabulary, lowercase, strip_accents)
  folder = tmp_path_factory.mktemp('reference')
  shutil.copy(vocabulary, folder / 'vocab.txt')
  settings = {'do_lower_case': lowercase, 'strip_accents': strip_accents}
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  return ours, transformers.BertTokenizerFast.from_pretrained(folder)


def reference_ids(reference, texts):
  return reference(texts, add_special_tokens=False, split_special_tokens=True)['input_ids']


def test_real_text_gives_the_same_ids(pair):
  ours, reference = pair
  documents = [
    text for text in made_tokenizers.sample_text(500_000, start=2_000_000).split('\n\n') if text
  ]
  encoded = ours.encode_batch(documents)
  assert sum(map(len, encoded)) > 50_000
  assert encoded == reference_ids(reference, documents)
  assert sum(ids.count(ours.unk_id) for ids in encoded) < 0.15 * sum(map(len, encoded)), (
    'too few known words to compare'
  )


def test_hostile_text_gives_the_same_ids(pair):
  ours, reference = pair
  for text, ids in zip(HOSTILE, ours.encode_batch(HOSTILE), strict=True):
    assert [ids] == [ours.encode(text)] == reference_ids(reference, [text]), ascii(text)


@settings(max_examples=100)
@given(text=st.lists(st.text(CHARACTERS, max_size=8) | st.sampled_from(HOSTILE), max_size=6))
def test_any_text_gives_the_same_ids(pair, text):
  ours, reference = pair
  for joint in ('', ' '):
    ids = ours.encode(joint.join(text))
    assert [ids] == reference_ids(reference, [joint.join(text)])
    assert not set(ids) & (set(ours.special_ids) - {ours.unk_id})


def test_the_comparison_can_fail(vocabulary):
  """Each setting changes ids of these texts, so a wrong setting would fail."""
  made = [tokenization.load_tokenizer(vocabulary, *chosen) for chosen in SETTINGS.values()]
  assert len({str(tokenizer.encode_batch(HOSTILE)) for tokenizer in made}) == len(made)
  assert len({tokenizer.fingerprint for tokenizer in made}) == len(made)


def test_transformers_opens_saved_files(pair, tmp_path):
  ours, _ = pair
  ours.save(tmp_path)
  for opening in (transformers.AutoTokenizer, transformers.BertTokenizerFast):
    opened = opening.from_pretrained(tmp_path)
    assert reference_ids(opened, HOSTILE) == ours.encode_batch(HOSTILE)
    theirs = (
      opened.pad_token_id,
      opened.unk_token_id,
      opened.cls_token_id,
      opened.sep_token_id,
      opened.mask_token_id,
    )
    assert theirs == (ours.pad_id, ours.unk_id, ours.cls_id, ours.sep_id, ours.mask_id)
    assert len(opened) == ours.size
    assert opened('Hello there')['input_ids'] == [
      ours.cls_id,
      *ours.encode('Hello there'),
      ours.sep_id,
    ]
    text = "He said: it's 5 naïve words (unaffably)."
    assert opened.decode(ours.encode(text)) == ours.decode(ours.encode(text))


def test_files_of_transformers_can_be_opened(pair, tmp_path):
  ours, reference = pair
  reference.save_pretrained(tmp_path)  # version 5 writes tokenizer.json and no vocab.txt
  opened = tokenization.load_tokenizer(tmp_path)
  assert opened.fingerprint == ours.fingerprint and opened.encode_batch(
    HOSTILE
  ) == ours.encode_batch(HOSTILE)
  assert tokenization.load_tokenizer(tmp_path / 'tokenizer.json').fingerprint == ours.fingerprint


def test_real_text_gives_the_ids_of_the_original_program(vocabulary):
  """The original implementation in Python, which transformers contains."""
  legacy = pytest.importorskip('transformers.models.bert.tokenization_bert_legacy')
  text = made_tokenizers.sample_text(100_000, start=1_000_000)
  for lowercase in (True, False):
    original = legacy.BertTokenizerLegacy(vocab_file=str(vocabulary), do_lower_case=lowercase)
    ids = original.convert_tokens_to_ids(original.tokenize(text, split_special_tokens=True))
    assert tokenization.load_tokenizer(vocabulary, lowercase).encode(text) == ids
