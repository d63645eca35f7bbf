"""A tokenizer that user code registered: saving, opening, pickling, errors without the code."""

import json
import pathlib
import pickle
import subprocess
import sys

import made_tokenizers
import pytest

from electra_jax import registry
from electra_jax.data.tokenizers import tokenization
from electra_jax.errors import UserError

EXAMPLE = pathlib.Path(__file__).parents[1] / 'extending' / 'tokenizer.py'
TEXT = 'The old man, née [MASK] \U0001f600.'


@pytest.fixture(scope='module', autouse=True)
def plugin():
  registry.load_plugins([EXAMPLE])
  yield
  del registry.TOKENIZERS._entries['characters']
  for name, module in list(sys.modules.items()):
    if getattr(module, '__file__', None) == str(EXAMPLE):
      del sys.modules[name]


def train(**settings):
  return made_tokenizers.train(
    made_tokenizers.documents(), kind='characters', vocab_size=300, **settings
  )


def in_new_process(code, *arguments):
  return subprocess.run(
    [sys.executable, '-c', code, *map(str, arguments)], capture_output=True, text=True
  )


def test_a_registered_tokenizer_is_trained_with_its_options():
  cased = train(options={'lowercase': False})
  assert cased.decode(cased.encode('The  old\nman')) == 'The old man'
  assert train().decode(train().encode('The old man')) == 'the old man'
  assert cased.fingerprint != train().fingerprint == train(options={'lowercase': True}).fingerprint
  assert cased.size < 300 and cased.special_ids == (0, 1, 2, 3, 4)
  assert not set(cased.encode(TEXT)) & {0, 2, 3, 4}


def test_options_are_part_of_the_identity_of_a_trained_tokenizer():
  identities = [
    tokenization.settings_identity(
      tokenization.TokenizerSettings(kind='characters', vocab_size=300, options=options)
    )
    for options in (None, {}, {'lowercase': True}, {'lowercase': False})
  ]
  assert identities[0] == identities[1] == identities[2] != identities[3]
  json.dumps(identities)


def test_a_registered_tokenizer_is_saved_and_opened(tmp_path):
  tokenizer = train(options={'lowercase': False})
  tokenizer.save(tmp_path)
  (tmp_path / 'vocab.txt').write_text('of another file in the folder')
  assert tokenization.holds_tokenizer(tmp_path)
  opened = tokenization.load_tokenizer(tmp_path)
  assert opened.fingerprint == tokenizer.fingerprint and opened.options == tokenizer.options
  assert opened.encode(TEXT) == tokenizer.encode(TEXT)
  with pytest.raises(UserError, match='has its own normalization'):
    tokenization.load_tokenizer(tmp_path, lowercase=True)
  (tmp_path / 'characters.txt').unlink()
  with pytest.raises(UserError, match=r'characters\.txt. is missing'):
    tokenization.load_tokenizer(tmp_path)
  (tmp_path / 'SHA256SUMS').unlink()
  with pytest.raises(UserError, match=r'lacks the file characters\.txt'):
    tokenization.load_tokenizer(tmp_path)
  (tmp_path / 'registered_tokenizer.json').write_text('[]')
  with pytest.raises(UserError, match='is damaged'):
    tokenization.load_tokenizer(tmp_path)


def test_opening_without_the_code_states_the_flag(tmp_path):
  train().save(tmp_path)
  code = """if True:
    import sys
    from electra_jax.data.tokenizers import tokenization
    tokenization.load_tokenizer(sys.argv[1])
  """
  done = in_new_process(code, tmp_path)
  assert f"uses the tokenizer 'characters', which {EXAMPLE} registered" in done.stderr
  assert f'--plugins={EXAMPLE}' in done.stderr


def test_a_pickled_tokenizer_opens_where_the_code_has_another_module_name(tmp_path):
  tokenizer = train()
  (tmp_path / 'pickled').write_bytes(pickle.dumps(tokenizer))
  code = """if True:
    import pathlib, pickle, sys
    from electra_jax import registry
    registry.load_plugins([sys.argv[1]])
    opened = pickle.loads(pathlib.Path(sys.argv[2]).read_bytes())
    print(opened.fingerprint)
  """
  done = in_new_process(code, EXAMPLE, tmp_path / 'pickled')
  assert done.stdout.strip() == tokenizer.fingerprint, done.stderr


def test_unknown_options_are_refused():
  with pytest.raises(UserError, match=r'tokenizer_options\.lower is not an option of'):
    train(options={'lower': True})
  with pytest.raises(UserError, match="lowercase is 'no'; expected True or False"):
    train(options={'lowercase': 'no'})
  with pytest.raises(UserError, match="not an option of the tokenizer 'unigram'; expected none"):
    made_tokenizers.train(
      made_tokenizers.documents(), kind='unigram', vocab_size=300, options={'lowercase': True}
    )


def test_the_kind_of_a_class_must_be_its_registered_name():
  registry.TOKENIZERS.register('letters', registry.TOKENIZERS.get('characters'))
  try:
    with pytest.raises(UserError, match="has kind 'characters'; expected the name"):
      made_tokenizers.train(made_tokenizers.documents(), kind='letters', vocab_size=300)
  finally:
    del registry.TOKENIZERS._entries['letters']


def test_what_a_kind_does_not_define_is_refused():
  tokenizer = train()
  with pytest.raises(UserError, match="'characters' has no character offsets"):
    tokenizer.encode_with_offsets(['text'])
  with pytest.raises(UserError, match="not supported for the tokenizer 'characters'"):
    tokenizer.with_words(['word'])


def test_a_version_changes_the_fingerprint(monkeypatch):
  tokenizer = train()
  before = tokenizer.fingerprint
  monkeypatch.setattr(type(tokenizer), 'version', 1)
  assert tokenizer.fingerprint != before


def test_transformers_opens_an_exported_registered_tokenizer(tmp_path):
  transformers = pytest.importorskip('transformers')
  from electra_jax.interop import tokenizer_files

  tokenizer = train()
  for name, content in tokenizer_files.files(tokenizer, 64, False).items():
    (tmp_path / name).write_bytes(content)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  text = 'The old  man, née\n😀.'
  assert theirs(text)['input_ids'] == [
    tokenizer.cls_id,
    *tokenizer.encode(text),
    tokenizer.sep_id,
  ]
  assert tokenization.load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint


def test_a_tokenizer_without_a_pipeline_is_exported_with_its_own_files(monkeypatch, capsys):
  from electra_jax.interop import tokenizer_files

  tokenizer = train()
  monkeypatch.setattr(type(tokenizer), 'to_pipeline', tokenization.Tokenizer.to_pipeline)
  assert tokenizer_files.files(tokenizer, 64, False) == tokenizer.saved_files()
  assert "transformers cannot open the tokenizer 'characters'" in capsys.readouterr().out
