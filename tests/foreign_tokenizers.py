"""Tokenizer files in the forms of other projects, trained on a small multilingual text.

Each form has the normalizer, the pre-tokenizer, the kind of model, the template of rows, and the
names and ids of special tokens of a published tokenizer; its vocabulary is small.
"""

import functools
import json
import unicodedata

import made_tokenizers

# A few words in each of 30 scripts, with and without spaces.
SCRIPTS = {
  'Latin': 'The quick brown fox, naïve café',
  'Greek': 'Η γρήγορη αλεπού ΣΑΣ',
  'Cyrillic': 'Съешь ещё этих мягких булок',
  'Armenian': 'Բոլոր մարդիկ ծնվում են',
  'Georgian': 'ყველა ადამიანი იბადება',
  'Hebrew': 'כל בני האדם נולדו',
  'Arabic': 'يولد جميع الناس أحرارًا',
  'Persian': 'می\u200cخواهم کتاب\u200cها',
  'Syriac': 'ܟܠ ܒܪܢܫܐ ܒܪܝܠܗ',
  'Thaana': 'ހުރިހާ އިންސާނުން',
  'Devanagari': 'सभी मनुष्यों को क्षत्रिय',
  'Bengali': 'সমস্ত মানুষ স্বাধীনভাবে',
  'Gurmukhi': 'ਸਾਰੇ ਮਨੁੱਖ ਆਜ਼ਾਦ',
  'Gujarati': 'સર્વ માનવો પ્રતિષ્ઠા',
  'Oriya': 'ସମସ୍ତ ମନୁଷ୍ୟ',
  'Tamil': 'மனிதப் பிறவியினர் சகலரும்',
  'Telugu': 'ప్రతిపత్తిస్వత్వముల',
  'Kannada': 'ಎಲ್ಲಾ ಮಾನವರೂ',
  'Malayalam': 'മനുഷ്യരെല്ലാവരും തുല്യ',
  'Sinhala': 'සියලු මනුෂ්\u200dයයෝ',
  'Thai': 'มนุษย์ทั้งหลายเกิดมามีอิสระ',
  'Lao': 'ມະນຸດທຸກຄົນເກີດມາ',
  'Tibetan': 'འགྲོ་བ་མིའི་རིགས་རྒྱུད།',
  'Burmese': 'လူတိုင်းသည်တူညီ',
  'Khmer': 'មនុស្សទាំងអស់កើតមក',
  'Ethiopic': 'የሰው ልጅ ሁሉ ሲወለድ',
  'Cherokee': 'ᏂᎦᏓ ᎠᏂᏴᏫ',
  'Mongolian': 'ᠬᠦᠮᠦᠨ ᠪᠦᠷ',
  'Hangul': '모든 인간은 태어날',
  'Hiragana': 'すべてのにんげんは',
  'Katakana': 'カタカナ ガ ﾊﾟ',
  'Han': '人人生而自由，在尊严',
  'Canadian syllabics': 'ᐃᓅᔪᓕᒫᑦ ᐊᓂᖅᑎᕐᓯ',
}
MORE = [
  '',
  ' ',
  '\n',
  'a\tb\r\nc\n\nd',
  '  two  spaces  ',
  '😀 👩\u200d👩\u200d👧\u200d👦 👍🏽 🇫🇷 1️⃣',
  '\0a\x01b\x7f\x85\u200b\u2028\ufeff\ufffd',
  'e\u0301 é ﬁ Å ½ ① ｶﾞ',
  'İstanbul IŞIK ışık',
  "don't (see) $1,234.50 -- “quoted”",
  'x' * 300,
  '\U0010ffff \ue000',
  '▁a Ġb ##c',
]
TEXTS = [*SCRIPTS.values(), *MORE]
ANGULAR = ('<s>', '</s>', '<unk>', '<pad>', '<mask>')
BRACKETS = ('[CLS]', '[SEP]', '[UNK]', '[PAD]', '[MASK]')
ROLES = ('cls_token', 'sep_token', 'unk_token', 'pad_token', 'mask_token')


@functools.cache
def lines():
  """The text that the vocabularies are trained on."""
  some = made_tokenizers.sample_text(60_000).split('\n')
  return [line for line in some if line.strip()] + [*SCRIPTS.values(), 'IŞIK ışık İşi'] * 5


def _trained(pipeline, trainer):
  pipeline.train_from_iterator(lines(), trainer)
  return pipeline


def _template(pipeline, single, pair):
  from tokenizers import processors

  names = {word.partition(':')[0] for word in f'{single} {pair}'.split() if word[0] != '$'}
  pipeline.post_processor = processors.TemplateProcessing(
    single=single,
    pair=pair,
    special_tokens=[(name, pipeline.token_to_id(name)) for name in sorted(names)],
  )


def _unigram(special, size=900, unknown='<unk>', normalizers_=(), metaspace='always'):
  """A unigram pipeline with the steps of converted SentencePiece models."""
  import tokenizers
  from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

  pipeline = tokenizers.Tokenizer(models.Unigram())
  pipeline.normalizer = normalizers.Sequence(
    [*normalizers_, normalizers.NFKC(), normalizers.Replace(Regex(' {2,}'), ' ')]
  )
  pipeline.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=metaspace)
  pipeline.decoder = decoders.Metaspace(prepend_scheme=metaspace)
  trainer = trainers.UnigramTrainer(
    vocab_size=size, special_tokens=list(special), unk_token=unknown, show_progress=False
  )
  return _trained(pipeline, trainer)


def _bert(normalizer=None):
  import tokenizers
  from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

  pipeline = tokenizers.Tokenizer(models.WordPiece(unk_token='[UNK]'))
  pipeline.normalizer = normalizer or normalizers.BertNormalizer()
  pipeline.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  pipeline.decoder = decoders.WordPiece()
  special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
  _trained(
    pipeline,
    trainers.WordPieceTrainer(vocab_size=1500, special_tokens=special, show_progress=False),
  )
  _template(pipeline, '[CLS]:0 $A:0 [SEP]:0', '[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1')
  return pipeline, dict(zip(ROLES, BRACKETS, strict=True)) | {'tokenizer_class': 'BertTokenizer'}


def _turkish():
  """WordPiece with Turkish casing, which BERT's normalizer does not do."""
  from tokenizers import normalizers

  steps = [
    normalizers.NFC(),
    normalizers.Replace('I', 'ı'),
    normalizers.Replace('İ', 'i'),
    normalizers.Lowercase(),
  ]
  pipeline, settings = _bert(normalizers.Sequence(steps))
  return pipeline, settings | {'tokenizer_class': 'PreTrainedTokenizerFast'}


def _byte_level(special, size=900, **options):
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers, trainers

  pipeline = tokenizers.Tokenizer(models.BPE())
  pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(**{'add_prefix_space': False} | options)
  pipeline.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  return _trained(
    pipeline,
    trainers.BpeTrainer(
      vocab_size=size,
      special_tokens=special,
      initial_alphabet=alphabet,
      show_progress=False,
    ),
  )


def _roberta():
  from tokenizers import AddedToken, processors

  pipeline = _byte_level(['<s>', '<pad>', '</s>', '<unk>', '<mask>'])
  pipeline.add_special_tokens([AddedToken('<mask>', lstrip=True, normalized=False)])
  pipeline.post_processor = processors.RobertaProcessing(('</s>', 2), ('<s>', 0))
  return pipeline, dict(zip(ROLES, ANGULAR, strict=True)) | {
    'bos_token': '<s>',
    'eos_token': '</s>',
    'tokenizer_class': 'RobertaTokenizer',
  }


def _modernbert():
  from tokenizers import AddedToken, normalizers

  pipeline = _byte_level(['|||IP_ADDRESS|||', '<|padding|>'])
  pipeline.normalizer = normalizers.NFC()
  pipeline.add_tokens([AddedToken('  ', normalized=True), AddedToken('    ', normalized=True)])
  pipeline.add_special_tokens(['<|endoftext|>', '[UNK]', '[CLS]', '[SEP]', '[PAD]'])
  pipeline.add_special_tokens([AddedToken('[MASK]', lstrip=True, normalized=False)])
  pipeline.add_tokens(['[unused0]', '[unused1]'])
  _template(pipeline, '[CLS] $A [SEP]', '[CLS] $A [SEP] $B [SEP]')
  return pipeline, dict(zip(ROLES, BRACKETS, strict=True)) | {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'model_max_length': 8192,
  }


def _gpt2():
  """A vocabulary with one special token, which has all roles."""
  pipeline = _byte_level(['<|endoftext|>'])
  return pipeline, dict.fromkeys(('bos_token', 'eos_token', 'unk_token'), '<|endoftext|>')


def _albert():
  from tokenizers import normalizers

  steps = [
    normalizers.Replace('``', '"'),
    normalizers.Replace("''", '"'),
    normalizers.NFKD(),
    normalizers.StripAccents(),
    normalizers.Lowercase(),
  ]
  pipeline = _unigram(['<pad>', '<unk>', '[CLS]', '[SEP]', '[MASK]'], normalizers_=steps)
  _template(pipeline, '[CLS]:0 $A:0 [SEP]:0', '[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1')
  names = ('[CLS]', '[SEP]', '<unk>', '<pad>', '[MASK]')
  return pipeline, dict(zip(ROLES, names, strict=True)) | {'tokenizer_class': 'AlbertTokenizer'}


def _xlm_roberta():
  from tokenizers import AddedToken, pre_tokenizers

  pipeline = _unigram(['<s>', '<pad>', '</s>', '<unk>'])
  pipeline.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
  )
  pipeline.add_special_tokens([AddedToken('<mask>', lstrip=True, normalized=False)])
  _template(pipeline, '<s> $A </s>', '<s> $A </s> </s> $B </s>')
  return pipeline, dict(zip(ROLES, ANGULAR, strict=True)) | {
    'tokenizer_class': 'XLMRobertaTokenizer'
  }


def _t5():
  pipeline = _unigram(['<pad>', '</s>', '<unk>'])
  extra = [f'<extra_id_{i}>' for i in range(3, -1, -1)]
  pipeline.add_special_tokens(extra)
  _template(pipeline, '$A </s>', '$A </s> $B </s>')
  return pipeline, {
    'eos_token': '</s>',
    'unk_token': '<unk>',
    'pad_token': '<pad>',
    'additional_special_tokens': extra,
    'tokenizer_class': 'T5Tokenizer',
  }


def _deberta_v3():
  pipeline = _unigram(['[PAD]', '[CLS]', '[SEP]', '[UNK]'], unknown='[UNK]')
  pipeline.add_special_tokens(['[MASK]'])
  _template(pipeline, '[CLS]:0 $A:0 [SEP]:0', '[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1')
  return pipeline, dict(zip(ROLES, BRACKETS, strict=True)) | {
    'tokenizer_class': 'DebertaV2Tokenizer',
    'do_lower_case': False,
  }


def _bpe_with_bytes(special, size=1200):
  """BPE of characters with bytes for rare ones, as Llama and Gemma."""
  import tokenizers
  from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

  pipeline = tokenizers.Tokenizer(models.BPE(unk_token='<unk>', fuse_unk=True, byte_fallback=True))
  pipeline.normalizer = normalizers.Replace(' ', '▁')
  # Only for the training, so that no token crosses a space.
  pipeline.pre_tokenizer = pre_tokenizers.Split('▁', 'merged_with_next')
  pipeline.decoder = decoders.Sequence(
    [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()]
  )
  bytes_ = [f'<0x{byte:02X}>' for byte in range(256)]
  trainer = trainers.BpeTrainer(
    vocab_size=size, special_tokens=[*special, *bytes_], max_token_length=8, show_progress=False
  )
  _trained(pipeline, trainer)
  # Bytes are in the vocabulary but are not matched in a text.
  description = json.loads(pipeline.to_str()) | {'pre_tokenizer': None}
  description['added_tokens'] = [
    token for token in description['added_tokens'] if token['content'] in special
  ]
  return tokenizers.Tokenizer.from_str(json.dumps(description))


def _llama():
  from tokenizers import decoders, normalizers

  pipeline = _bpe_with_bytes(['<unk>', '<s>', '</s>'])
  pipeline.normalizer = normalizers.Sequence(
    [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
  )
  pipeline.decoder = decoders.Sequence([pipeline.decoder, decoders.Strip(' ', 1, 0)])
  _template(pipeline, '<s> $A', '<s> $A <s> $B')
  return pipeline, {
    'bos_token': '<s>',
    'eos_token': '</s>',
    'unk_token': '<unk>',
    'tokenizer_class': 'LlamaTokenizer',
  }


def _gemma():
  from tokenizers import pre_tokenizers

  pipeline = _bpe_with_bytes(['<pad>', '<eos>', '<bos>', '<unk>', '<mask>'])
  pipeline.pre_tokenizer = pre_tokenizers.Split(' ', 'merged_with_previous')
  pipeline.add_tokens(['[multimodal]', '<unused0>'])
  _template(pipeline, '<bos> $A', '<bos> $A <bos> $B')
  return pipeline, {
    'bos_token': '<bos>',
    'eos_token': '<eos>',
    'unk_token': '<unk>',
    'pad_token': '<pad>',
    'tokenizer_class': 'GemmaTokenizer',
  }


def _gpt1():
  """BPE with `</w>` at the end of words."""
  import tokenizers
  from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

  pipeline = tokenizers.Tokenizer(models.BPE(unk_token='<unk>', end_of_word_suffix='</w>'))
  pipeline.normalizer = normalizers.BertNormalizer()
  pipeline.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  pipeline.decoder = decoders.BPEDecoder(suffix='</w>')
  trainer = trainers.BpeTrainer(
    vocab_size=900,
    special_tokens=['<unk>'],
    end_of_word_suffix='</w>',
    show_progress=False,
  )
  return _trained(pipeline, trainer), {'unk_token': '<unk>'}


FORMS = {
  'bert': _bert,
  'turkish': _turkish,
  'roberta': _roberta,
  'modernbert': _modernbert,
  'gpt2': _gpt2,
  'albert': _albert,
  'xlm_roberta': _xlm_roberta,
  't5': _t5,
  'deberta_v3': _deberta_v3,
  'llama': _llama,
  'gemma': _gemma,
  'gpt1': _gpt1,
}
# Forms that lack some of the five special tokens.
INCOMPLETE = ('gpt2', 't5', 'llama', 'gpt1')


@functools.cache
def files(form):
  """Name -> content of the files of a form."""
  pipeline, settings = FORMS[form]()
  return {
    'tokenizer.json': pipeline.to_str(pretty=True).encode(),
    'tokenizer_config.json': json.dumps(settings).encode(),
  }


def write(form, folder):
  """Writes the files of a form into a folder, and returns it."""
  folder.mkdir(parents=True, exist_ok=True)
  for name, content in files(form).items():
    (folder / name).write_bytes(content)
  return folder


def decomposed(text):
  """A text with its accents as separate characters."""
  return unicodedata.normalize('NFD', text)
