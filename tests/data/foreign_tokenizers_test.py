"""Tokenizer files of other projects: ids, offsets, words, special tokens and round trips."""

import json
import pathlib
import pickle
import re

import foreign_tokenizers
import made_tokenizers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_jax.data.tokenizers import tokenization
from electra_jax.errors import UserError
from electra_jax.interop import tokenizer_files

transformers = pytest.importorskip('transformers', reason='compares with transformers')

FORMS = tuple(foreign_tokenizers.FORMS)
TEXTS = [*foreign_tokenizers.TEXTS, *map(foreign_tokenizers.decomposed, foreign_tokenizers.TEXTS)]
# Characters that decide about words, and names of tokens that are not special ones of a form.
ANY = st.lists(
  st.text(st.sampled_from(''.join(sorted(set(''.join(TEXTS))))), max_size=8)
  | st.text(st.characters(exclude_categories=['Cs']), max_size=8),
  max_size=6,
).map(' '.join)
# White space for all of them.
WHITE = re.compile(r'\s')


@pytest.fixture(scope='module')
def opened(tmp_path_factory):
  """Form -> (the folder, the tokenizer)."""
  made = {}

  def get(form):
    if form not in made:
      folder = foreign_tokenizers.write(form, tmp_path_factory.mktemp('forms') / form)
      tokenizer = tokenization.load_tokenizer(
        folder, add_special_tokens=form in foreign_tokenizers.INCOMPLETE
      )
      made[form] = folder, tokenizer
    return made[form]

  return get


@pytest.fixture(scope='module', params=FORMS)
def exported(request, opened, tmp_path_factory):
  """(the tokenizer, that of `transformers` in its export, and the one read from what it saves)."""
  _, ours = opened(request.param)
  folder = tmp_path_factory.mktemp('exported')
  for name, content in tokenizer_files.files(ours, 64, request.param == 'bert').items():
    (folder / name).write_bytes(content)
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  theirs.save_pretrained(folder / 'saved')
  return ours, theirs, tokenization.load_tokenizer(folder / 'saved')


def ids_of(theirs, texts):
  return theirs(texts, add_special_tokens=False, split_special_tokens=True)['input_ids']


def test_every_text_has_the_same_ids_after_a_round_trip_through_transformers(exported):
  ours, theirs, again = exported
  ids = ours.encode_batch(TEXTS)
  assert ids_of(theirs, TEXTS) == ids == again.encode_batch(TEXTS)
  assert again.fingerprint == ours.fingerprint and again.special_ids == ours.special_ids
  assert sum(map(len, ids)) > 500


@settings(max_examples=30)
@given(text=ANY)
def test_any_text_has_the_same_ids(exported, text):
  ours, theirs, again = exported
  ids = ours.encode(text)
  assert again.encode(text) == ids
  if not set(re.findall(r'[<\[|][^\s]*', text)) & {*ours.tokens}:
    assert ids_of(theirs, [text]) == [ids]


def test_rows_and_roles_are_ours_in_transformers(exported):
  ours, theirs, _ = exported
  one, other = ours.encode_batch(['The old', 'man sat.'])
  row = theirs('The old', 'man sat.')['input_ids']
  between = [ours.sep_id] * ours.separators
  assert row == [ours.cls_id, *one, *between, *other, ours.sep_id]
  roles = ('pad', 'unk', 'cls', 'sep', 'mask')
  assert [getattr(theirs, f'{role}_token_id') for role in roles] == [
    getattr(ours, f'{role}_id') for role in roles
  ]
  assert theirs.model_max_length == 64


def test_a_special_token_is_never_made_from_text(exported):
  ours, _, _ = exported
  special = set(ours.special_ids) - {ours.unk_id}
  names = [ours.tokens[i] for i in special]
  text = ' '.join(names) + ''.join(names) + 'a'.join(names)
  ids = ours.encode(text)
  assert not special & set(ids)
  if 'Ġ' in ours.notation:  # each name is text, whose bytes are known
    assert ours.unk_id not in ids and ours.decode(ids) == text


def test_spans_are_in_order_without_white_space_and_cover_the_text(exported):
  ours, _, _ = exported
  for text in TEXTS:
    ((ids, spans),) = ours.encode_with_offsets([text])
    assert ids.tolist() == ours.encode(text) and spans.shape == (len(ids), 2)
    start, end = spans.T
    assert (start <= end).all() and (end <= len(text)).all()
    assert (np.diff(start) >= 0).all() and (np.diff(end) >= 0).all()
    covered = np.zeros(len(text), bool)
    for first, last in spans.tolist():
      part = text[first:last]
      assert part == part.strip()
      covered[first:last] = True
    assert all(covered[i] for i, c in enumerate(text) if c.isascii() and c.isalnum())


def words(tokenizer, text):
  """The text of each word, by `word_starts`, `word_ends` and offsets."""
  ((ids, spans),) = tokenizer.encode_with_offsets([text])
  starts = tokenizer.word_starts[ids]
  starts[1:] |= tokenizer.word_ends[ids[:-1]]
  starts[:1] = True
  first = np.flatnonzero(starts)
  last = np.append(first[1:], len(ids)) - 1
  found = [text[spans[a, 0] : spans[b, 1]] for a, b in zip(first, last, strict=True)]
  return [word for word in found if word]


@pytest.mark.parametrize('form', FORMS)
def test_words_are_those_of_the_text(opened, form):
  _, ours = opened(form)
  text = 'The quick brown foxes jumped over unaffordable naïve cafés'
  assert words(ours, text) == text.split()
  if form in ('roberta', 'modernbert', 'gpt2'):  # other forms have no line breaks
    assert words(ours, 'The old\nman\tsat\n\n  down') == ['The', 'old', 'man', 'sat', 'down']
    assert ours.word_ends[ours.encode('\n')].all() and not ours.word_ends[ours.encode(' a')].any()
  assert words(ours, 'sat. Then')[-2:] == ['.', 'Then']


def test_the_files_are_kept_and_exported_byte_for_byte(opened, tmp_path):
  for form in ('turkish', 'albert', 'deberta_v3'):
    folder, ours = opened(form)
    original = (folder / 'tokenizer.json').read_bytes()
    ours.save(tmp_path / form)
    assert (tmp_path / form / 'tokenizer.json').read_bytes() == original
    token_types = form != 'turkish'
    assert tokenizer_files.files(ours, 64, token_types)['tokenizer.json'] == original
    again = tokenization.load_tokenizer(tmp_path / form)
    assert again.fingerprint == ours.fingerprint == pickle.loads(pickle.dumps(ours)).fingerprint


def test_tokens_that_were_added_survive(opened):
  _, ours = opened('modernbert')
  assert 'unused0' in ours.token(ours.encode('a [unused0] b')[2])
  assert ours.token(ours.encode('ask |||IP_ADDRESS|||')[-1]) == '|||IP_ADDRESS|||'
  _, ours = opened('t5')
  assert '<extra_id_0>' in [ours.token(i) for i in ours.encode('a <extra_id_0> b')]


def test_offsets_of_exported_byte_level_bpe_have_no_spaces(opened, tmp_path):
  for form in ('roberta', 'modernbert'):
    _, ours = opened(form)
    for name, content in tokenizer_files.files(ours, 64, False).items():
      (tmp_path / name).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = 'The old man sat'
    spans = theirs(text, add_special_tokens=False, return_offsets_mapping=True)['offset_mapping']
    assert [list(span) for span in spans] == ours.encode_with_offsets([text])[0][1].tolist()


def test_missing_special_tokens_are_named_and_appended_on_request(opened):
  folder, ours = opened('t5')
  with pytest.raises(UserError, match=r'lacks \[CLS\], \[MASK\]; .*--config.data.add_special_tok'):
    tokenization.load_tokenizer(folder)
  before = json.loads((folder / 'tokenizer.json').read_text('utf-8'))
  size = max(token['id'] for token in before['added_tokens']) + 1
  assert (
    ours.tokens[size:]
    == ('<s>', '<mask>')
    == (
      ours.tokens[ours.cls_id],
      ours.tokens[ours.mask_id],
    )
  )
  folder, ours = opened('gpt2')
  assert ours.tokens[ours.cls_id] == '<|endoftext|>' and len(set(ours.special_ids)) == 5


def test_tokens_beside_the_pipeline_have_the_ids_of_transformers(tmp_path):
  folder = foreign_tokenizers.write('albert', tmp_path / 'albert')
  settings = json.loads((folder / 'tokenizer_config.json').read_text())
  settings['additional_special_tokens'] = ['<ent>']
  settings['added_tokens_decoder'] = {'900': {'content': 'zzyzx', 'special': False}}
  settings['tokenizer_class'] = 'PreTrainedTokenizerFast'
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  ours = tokenization.load_tokenizer(folder)
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  text = 'the zzyzx <ent> man'
  assert ours.tokens[900:] == ('zzyzx', '<ent>')
  assert ours.encode(text) == theirs(text, add_special_tokens=False)['input_ids']
  settings['added_tokens_decoder'] = {'907': {'content': 'zzyzx', 'special': False}}
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  with pytest.raises(UserError, match="'zzyzx' was added .* as id 907"):
    tokenization.load_tokenizer(folder)


def test_turkish_casing_of_a_normalizer_is_respected(opened):
  _, ours = opened('turkish')
  assert ours.kind == 'pipeline'
  assert ours.encode('IŞIK İSTANBUL') == ours.encode('ışık istanbul')
  assert ours.encode('IŞIK') != ours.encode('işik')


def test_case_settings_are_refused(opened):
  folder, _ = opened('albert')
  with pytest.raises(UserError, match='has its own normalization; remove lowercase'):
    tokenization.load_tokenizer(folder, lowercase=True)


@pytest.mark.parametrize('form', ['roberta', 'gemma', 'xlm_roberta'])
def test_a_long_text_has_the_ids_of_the_whole_text(opened, form, monkeypatch):
  _, ours = opened(form)
  text = made_tokenizers.sample_text(6_000)
  whole = ours.encode(text)
  monkeypatch.setattr('electra_jax.data.tokenizers.text_parts.LONG_TEXT', 1000)
  assert ours.encode(text) == whole
  ((ids, spans),) = ours.encode_with_offsets([text])
  assert ids.tolist() == whole and spans[-1, 1] == len(text.rstrip())


#### Files with a vocabulary only ####

SHARED = pathlib.Path(__file__).parents[3] / 'shared/cases/vocab_trailing_space/vocab.txt'
VOCABULARY = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'the', 'old', '##er', '.']


def vocabulary(folder, lines):
  (folder / 'vocab.txt').write_text('\n'.join(lines) + '\n', 'utf-8')
  return folder / 'vocab.txt'


def test_white_space_around_the_lines_of_a_vocabulary_is_removed(tmp_path):
  plain = tokenization.load_tokenizer(vocabulary(tmp_path, VOCABULARY))
  spaced = tokenization.load_tokenizer(vocabulary(tmp_path, [f' {x} \t' for x in VOCABULARY]))
  assert spaced.tokens == plain.tokens and spaced.encode('The older.') == [5, 6, 7, 8]
  if SHARED.exists():
    assert tokenization.load_tokenizer(SHARED).tokens[:6] == (
      '[PAD]',
      '[unused1]',
      '[UNK]',
      '[CLS]',
      '[SEP]',
      '[MASK]',
    )


def test_other_names_of_special_tokens_are_shown(tmp_path):
  other = ['<pad>', '<unk>', '<s>', '</s>', '<mask>', *VOCABULARY[5:]]
  with pytest.raises(UserError, match=r'lacks \[PAD\].*it has <pad>, <unk>.*tokenizer_config.json'):
    tokenization.load_tokenizer(vocabulary(tmp_path, other))


@pytest.mark.parametrize('form', ['{}\t-3.25', '{} 12', '{}\t1.5e-05'])
def test_lines_with_scores_are_refused_with_the_first_of_them(tmp_path, form):
  with pytest.raises(UserError, match=r'line 1 of the vocabulary .* a token and a score or count'):
    tokenization.load_tokenizer(vocabulary(tmp_path, [form.format(x) for x in VOCABULARY]))


def test_missing_tokens_are_appended_to_a_vocabulary(tmp_path, capsys):
  place = vocabulary(tmp_path, VOCABULARY[:4] + VOCABULARY[5:])
  with pytest.raises(UserError, match=r'lacks \[MASK\]; .*add_special_tokens'):
    tokenization.load_tokenizer(place)
  tokenizer = tokenization.load_tokenizer(place, add_special_tokens=True)
  assert tokenizer.mask_id == 8 == tokenizer.size - 1
  assert 'appended to the vocabulary: [MASK]' in capsys.readouterr().out
  tokenizer.save(tmp_path / 'saved')
  assert tokenization.load_tokenizer(tmp_path / 'saved').fingerprint == tokenizer.fingerprint


EMPTY_PATTERN = {
  'type': 'Sequence',
  'normalizers': [
    {'type': 'Replace', 'pattern': {'String': ''}, 'content': '"'},
    {'type': 'Replace', 'pattern': {'String': "''"}, 'content': '"'},
    {'type': 'NFKD'},
  ],
}


@pytest.mark.parametrize(
  'part, value, reason',
  [
    ('model', {'type': 'BPE'}, 'cannot be opened by tokenizers'),
    ('added_tokens', [1], 'cannot be opened by tokenizers'),
    ('normalizer', EMPTY_PATTERN, 'fails for text'),
    ('version', '9', 'cannot be opened by tokenizers'),
  ],
)
def test_a_damaged_pipeline_is_one_sentence(tmp_path, part, value, reason):
  folder = foreign_tokenizers.write('albert', tmp_path / 'a')
  described = json.loads((folder / 'tokenizer.json').read_text('utf-8')) | {part: value}
  (folder / 'tokenizer.json').write_text(json.dumps(described))
  with pytest.raises(UserError, match=reason) as caught:
    tokenization.load_tokenizer(folder)
  assert '\n' not in str(caught.value) and 'restore it' in str(caught.value)
