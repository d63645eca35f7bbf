"""Reads and checks a run's config; every complaint names the field and what would do.

`default_config` is the one place where all fields stand with their meaning; the files in configs/ change some of them.
"""

import copy
import difflib
import importlib.util
import itertools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections

from electra_jax.errors import UserError

# What may differ when a run is resumed, because what was computed so far does not depend on it.
# A name that ends with a dot is a group of fields.
FREE_ON_RESUME = (
  'keep',
  'skip_nonfinite',
  'profile_steps',
  'compilation_cache',
  'data.cache',
  'data.reader',
  'data.store',
  'data.workers',
  'mesh.',
  'sharding.',
)
# What a phase of config.phases may set.
PHASE_FIELDS = (
  'steps',
  'sequence_length',
  'batch_size',
  'micro_batches',
  'data.store',
  'objective.mask_rate',
  'optimizer.learning_rate',
  'optimizer.generator_learning_rate',
  'optimizer.warmup_steps',
)


def default_config() -> ml_collections.ConfigDict:
  """All fields with their defaults: those of ELECTRA-Small (Clark et al. 2020, table 6)."""
  c = ml_collections.ConfigDict()
  c.name = 'run'  # names the default workdir, runs/<name>
  c.seed = 0  # of parameters, batches, masks, samples and dropout
  c.init = ''  # weights to go on from: hf:FOLDER, tf:CHECKPOINT, or a run's folder; sizes and sharing are theirs. '': fresh ones

  c.continued = continued = (
    ml_collections.ConfigDict()
  )  # with config.init: what becomes of the weights; see docs/continued.md
  continued.step = 'last'  # of a run: its checkpoint, last, best or a step
  continued.generator = ''  # '': that of config.init; or hf:FOLDER; scratch and narrowed (cut out of the discriminator) make one
  continued.optimizer = 'fresh'  # Adam's moments: fresh, kept, or resumed: kept, and the schedule goes on after the steps made
  continued.new_tokens = 'refuse'  # rows of tokens that its vocabulary lacks: refuse, mean (of all), pieces (mean of what they were cut into)
  continued.positions = (
    'refuse'  # electra: rows longer than its position table: refuse, interpolated or repeated
  )

  c.data = data = ml_collections.ConfigDict()
  data.source = 'sample'  # 'sample' (the bundled corpus), files, globs, gs://..., tfds:NAME, with options; see docs/data.md
  data.document_format = (
    'blank_line'  # what separates documents in text files: blank_line, file or line
  )
  data.invalid_utf8 = (
    'refuse'  # bytes that are not UTF-8: refuse the file, or replace them, counted
  )
  data.heldout_fraction = 0.05  # of the documents, kept whole for evaluation
  data.near_duplicates = (
    0.0  # documents this similar to an earlier one are left out (MinHash; 0.8 say); 0 keeps all
  )
  data.row_format = (
    'packed'  # packed (no token lost), or segment_pair (the original's two-segment examples)
  )
  data.seed = 0  # of segment_pair's draws
  data.tokenizer = 'unigram'  # trained on the corpus: unigram, bpe, wordpiece; or one that is there: a vocab.txt, a .model, their folder;
  # init: that of config.init, or of config.generator.init
  data.new_words = ''  # tokenizer init: a file of words, one a line, that become tokens of their own (config.continued.new_tokens)
  data.vocab_size = 30522  # of the tokenizer that is trained, special tokens included
  data.lowercase = 'auto'  # wordpiece: uncased: yes, no, or auto (yes, or as the tokenizer that is there was saved)
  data.strip_accents = 'auto'  # wordpiece: yes, no, or auto (as BERT: where it is uncased)
  data.byte_fallback = 'auto'  # unigram, bpe: rare characters as bytes, not [UNK]: yes, no, or auto (from 8,192 tokens on)
  data.store = ''  # a corpus that --mode=prepare --output=... made, folder or gs://; takes the place of all above
  data.cache = (
    'runs/cache'  # where prepared corpora are kept for later runs, and shards of remote ones
  )
  data.workers = 0  # processes that prepare; 0: one a core. The rows are the same for any number
  data.reader = 'auto'  # reads batches ahead: tf (tf.data), numpy (starts faster), auto (tf where it is installed)
  c.sequence_length = 128  # tokens a row
  c.batch_size = 128  # rows a step, over all devices
  c.steps = 1_000_000  # updates in all; the schedule ends there
  c.budget_flops = 0.0  # in place of steps: as many as this many FLOPs pay for; 0: none
  c.budget_convention = 'model'  # of budget_flops: model (6 N a token and attention), or paper (as the published script counts)
  c.budget_tokens = 0.0  # in place of steps: as many as this many tokens make; 0: none
  c.budget_minutes = 0.0  # in place of steps: as many as these devices make in this time, timed at the start; 0: none
  c.phases = ()  # parts of the run after each other, each a dict of its steps and other fields that change; (): one part

  c.model = model = (
    ml_collections.ConfigDict()
  )  # the discriminator; see electra_jax/model/config.py
  model.family = 'electra'  # 'electra' as published, or 'modern' as ModernBERT
  model.hidden_size = 256  # width of the layers
  model.embedding_size = 128  # width of the embeddings; projected where it differs
  model.num_layers = 12  # depth
  model.num_heads = 4  # attention heads
  model.intermediate_size = 1024  # width inside the feed-forward layers
  model.max_positions = 512  # electra: the longest sequence the position table holds
  model.type_vocab_size = 2  # electra: token types
  model.layer_norm_eps = 1e-12  # added to the variance in LayerNorm
  model.initializer_range = 0.02  # standard deviation of fresh weights
  model.dropout = 0.1  # of embeddings and sublayer outputs
  model.attention_dropout = 0.1  # of attention probabilities
  model.global_every = 3  # modern: each such layer attends globally, the others locally; 1: all do
  model.local_window = 128  # modern: width of local attention
  model.global_rope_theta = 160_000.0  # modern: base of the rotary frequencies in global layers
  model.local_rope_theta = 10_000.0  # modern: and in local ones
  model.vocab_multiple = 128  # the embedding table's rows are padded to a multiple of this
  model.remat = 'none'  # what the backward pass computes again: none, dots or full
  model.scan_unroll = (
    0  # layers an iteration of the scan; 0: all on CPU (faster), one elsewhere (compiles faster)
  )
  model.attention = (
    'auto'  # kernel: xla, splash (TPU), cudnn (GPU), or auto; only xla has attention dropout
  )
  model.dropout_generator = 'hash'  # random bits of dropout: hash (cheap) or threefry

  c.generator = generator = ml_collections.ConfigDict()
  generator.hidden_fraction = 0.25  # of the discriminator's width, feed-forward and heads
  generator.layers_fraction = 1.0  # of its depth
  generator.num_heads = 0  # 0: in proportion to the width
  generator.intermediate_size = 0  # 0: in proportion to the width
  generator.embedding_size = (
    0  # sharing none: width of its own embeddings; 0: as the discriminator's
  )
  generator.uniform = False  # no generator: every token of the vocabulary is as likely as any other
  generator.init = ''  # sharing none, disentangled: weights to begin it with beside a fresh discriminator: hf:FOLDER, tf:CHECKPOINT, a run's folder
  generator.frozen = False  # it stays as its weights are (generator.init's, or those of config.init), and is computed forward only
  generator.alone_steps = (
    0  # the first so many of config.steps train the generator alone, for one that is to catch up
  )
  c.sharing = 'embeddings'  # between the towers: embeddings, none, all (one tower for both), or disentangled (GDES)

  c.objective = objective = ml_collections.ConfigDict()
  objective.name = 'electra'  # electra, mlm, replace_mlm, all_tokens_mlm, electra_15 or electric; see docs/objectives.md
  objective.masking = 'uniform'  # what is masked: uniform (tokens, each by itself), words (whole), spans (of whole words)
  objective.span_p = (
    0.2  # spans: their length in words is geometric, this the chance that one ends after a word
  )
  objective.span_max = 10  # spans: the longest, in words
  objective.mask_rate = 0.15  # share of the tokens that are masked
  objective.mask_share = 0.85  # of those (tokens, words or spans), the share that becomes [MASK]; the rest stay as they are
  objective.temperature = (
    1.0  # of the generator's softmax when sampling; 0 takes the most likely token
  )
  objective.disallow_correct = False  # never sample the original token
  objective.generator_weight = 1.0  # of the generator's loss
  objective.discriminator_weight = 50.0  # of the discriminator's loss
  objective.prediction_weight = 1.0  # replace_mlm, all_tokens_mlm: of the main tower's loss
  objective.google = (
    False  # the original program's quirks: masks drawn with replacement, and its counts
  )
  # Over the run, in training alone: ('linear', from, to), ('exponential', from, to, decay), ('points', (step, value), ...); (): as above
  objective.schedules = schedules = ml_collections.ConfigDict()
  schedules.temperature = ()  # of sampling
  schedules.mask_rate = ()  # of the tokens that are masked
  schedules.discriminator_weight = ()  # of the discriminator's loss

  c.optimizer = optimizer = ml_collections.ConfigDict()
  optimizer.name = 'adamw'  # adamw, or lamb (for batches of tens of thousands of rows)
  optimizer.learning_rate = 5e-4  # the peak, after warm-up; then down to 0 at the last step
  optimizer.generator_learning_rate = 0.0  # above 0: that of what is the generator's alone, clipped by itself too; 0: one optimizer for both towers
  optimizer.decay_power = 1.0  # of the way down: 1 linear, 0.5 a square root
  optimizer.decay_after_warmup = (
    False  # the way down begins after the warm-up; as published it runs over all steps
  )
  optimizer.warmup_steps = 10_000  # steps of linear warm-up
  optimizer.warmup_fraction = (
    0.0  # in place of warmup_steps: of the steps of the run, or of the phase; 0: none
  )
  optimizer.b1 = 0.9  # Adam's decay of the first moment
  optimizer.b2 = 0.999  # and of the second
  optimizer.eps = 1e-6  # added outside the square root
  optimizer.weight_decay = 0.01  # decoupled; not for biases and norms
  optimizer.clip = 1.0  # largest global norm of the gradients; 0: no clipping
  optimizer.bias_correction = False  # False as published, True as in Adam's paper

  c.mesh = mesh = (
    ml_collections.ConfigDict()
  )  # the devices as a grid; each axis a number of devices, -1: what the others leave
  mesh.data = -1  # splits rows and the optimizer's state; the parameters are whole
  mesh.fsdp = 1  # splits rows and parameters
  mesh.tensor = 1  # splits heads, feed-forward and vocabulary
  mesh.slices = (
    0  # groups of devices joined by a slower network, which `data` spans; 0: as the devices say
  )
  c.sharding = sharding = (
    ml_collections.ConfigDict()
  )  # mesh axes that split each axis of the parameters: fsdp, tensor, 'fsdp,tensor', ''
  sharding.vocab = 'tensor'  # rows of the embedding table
  sharding.heads = 'tensor'  # queries, keys, values
  sharding.mlp = 'tensor'  # inside of the feed-forward
  sharding.embed = 'fsdp'  # width of embeddings and layers
  sharding.embed_out = ''  # the other side of square projections
  sharding.positions = ''  # rows of the position table
  sharding.optimizer = (
    'data'  # splits the optimizer's state besides (ZeRO-1): data, or '' for nothing
  )
  sharding.smallest = 65_536  # tensors of fewer elements stay whole on each device
  c.dtype = (
    'auto'  # of matrix products: auto (bfloat16 on TPU and GPU, float32 on CPU), float32, bfloat16
  )
  c.micro_batches = 0  # parts a device's rows are split into; 0: as many as its memory wants
  c.skip_nonfinite = False  # leave out steps whose loss or gradient is not finite, rather than stop
  c.log_every = 100  # steps between lines of figures
  c.eval_every = 5_000  # steps between evaluations on the held-out rows
  c.eval_rows = 2_048  # most held-out rows in each of those; the final evaluation takes all
  c.eval_batch_size = 64  # rows a step of evaluation
  c.save_every = 5_000  # steps between checkpoints
  c.keep = 2  # the last so many checkpoints stay, and the best by held-out total loss
  c.profile_steps = (
    0,
    0,
  )  # first and last step of a profiler trace, in WORKDIR/profile; (0, 0): none
  c.compilation_cache = (
    '~/.cache/electra_jax/xla'  # compiled programs, kept for the next start; '': not kept
  )
  return c


BUDGETS = ('budget_flops', 'budget_tokens', 'budget_minutes')
OBJECTIVES = ('electra', 'mlm', 'replace_mlm', 'all_tokens_mlm', 'electra_15', 'electric')

# Names that a config file takes after its colon: --config=configs/base.py:seq=128,batch=64
ARGUMENTS = {
  'seq': 'sequence_length',
  'batch': 'batch_size',
  'steps': 'steps',
  'lr': 'optimizer.learning_rate',
  'warmup': 'optimizer.warmup_steps',
  'vocab': 'data.vocab_size',
  'source': 'data.source',
  'seed': 'seed',
  'dtype': 'dtype',
  'sharing': 'sharing',
  'objective': 'objective.name',
}


def with_arguments(config, arguments: str | None):
  """The config with `name=value,...` of the config string applied. Raises UserError for unknown names and ill-typed values."""
  for part in filter(None, (arguments or '').split(',')):
    name, equals, text = part.partition('=')
    if not equals or name not in ARGUMENTS:
      near = difflib.get_close_matches(name, ARGUMENTS, n=1)
      raise UserError(
        f'--config takes no argument {part!r}; '
        + (
          f'did you mean {near[0]}=...?'
          if near
          else f'it takes {", ".join(f"{n}=..." for n in ARGUMENTS)}.'
        )
      )
    *groups, field = ARGUMENTS[name].split('.')
    group = config[groups[0]] if groups else config
    kind = type(group[field])
    try:
      group[field] = kind(text)
    except ValueError:
      raise UserError(
        f'--config argument {name}={text!r} is not {"an integer" if kind is int else "a number"}.'
      ) from None
  return config


def flat(config, prefix='') -> dict:
  """Field -> value of a ConfigDict, groups of fields opened: 'model.hidden_size' and so on."""
  fields = {}
  for name, value in config.items():
    group = isinstance(value, ml_collections.ConfigDict)
    fields |= flat(value, f'{prefix}{name}.') if group else {prefix + name: value}
  return fields


def _need(condition, message):
  if not condition:
    raise UserError(message)


def check_fields(config, defaults, where: str) -> None:
  """Raises UserError for a field that is not among the defaults', which stand in the file `where`, or is missing."""
  known = flat(defaults)
  for field in set(flat(config)) ^ set(known):
    near = difflib.get_close_matches(field, known, n=1)
    _need(
      field in known,
      f'config.{field} is not a field'
      + (f'; did you mean config.{near[0]}?' if near else f'; {where} lists all of them.'),
    )
    raise UserError(
      f'the config lacks the field {field!r}; begin with default_config() of {where}.'
    )


def check(config) -> None:
  """Raises UserError for a field that cannot be, or two that contradict each other, before anything is built."""
  c = config
  check_fields(c, default_config(), 'electra_jax/config.py')
  for field in (
    'sequence_length',
    'batch_size',
    'steps',
    'log_every',
    'eval_every',
    'eval_rows',
    'eval_batch_size',
    'save_every',
    'keep',
  ):
    _need(c[field] >= 1, f'config.{field} is {c[field]}; it must be at least 1.')
  _need(
    c.micro_batches >= 0,
    f'config.micro_batches is {c.micro_batches}; give the number of parts, or 0 to let it be chosen.',
  )
  _need(
    not c.micro_batches or c.batch_size % c.micro_batches == 0,
    f'config.batch_size {c.batch_size} does not divide into {c.micro_batches} micro-batches; change one of the two.',
  )
  _need(
    c.sequence_length >= 8, f'config.sequence_length is {c.sequence_length}; it must be at least 8.'
  )
  _need(
    c.model.family != 'electra' or c.sequence_length <= c.model.max_positions,
    f'config.sequence_length {c.sequence_length} is longer than config.model.max_positions {c.model.max_positions}; '
    'raise the latter or shorten the rows.',
  )
  check_init(c)
  _check_budget(c)
  _check_phases(c)
  _need(
    0 <= c.optimizer.warmup_fraction < 1,
    f'config.optimizer.warmup_fraction is {c.optimizer.warmup_fraction}; it must lie in [0, 1).',
  )
  _need(
    _has_budget(c)
    or c.phases
    or c.optimizer.warmup_fraction
    or 0 <= c.optimizer.warmup_steps < c.steps,
    f'config.optimizer.warmup_steps {c.optimizer.warmup_steps} is not less than config.steps {c.steps}; '
    f'shorten the warm-up (--config.optimizer.warmup_steps={c.steps // 10}) or train longer.',
  )
  _need(
    c.optimizer.name in ('adamw', 'lamb'),
    f'config.optimizer.name is {c.optimizer.name!r}; it is adamw or lamb.',
  )
  _need(
    c.optimizer.decay_power > 0,
    f'config.optimizer.decay_power is {c.optimizer.decay_power}; it must be positive.',
  )
  _need(
    c.sharding.smallest >= 0,
    f'config.sharding.smallest is {c.sharding.smallest}; give a number of elements, 0 to split whatever divides.',
  )
  _need(
    c.mesh.slices >= 0,
    f'config.mesh.slices is {c.mesh.slices}; give a number of slices, or 0 for as many as the devices say.',
  )
  _need(
    c.model.attention in ('auto', 'xla', 'splash', 'cudnn'),
    f'config.model.attention is {c.model.attention!r}; it is auto, xla, splash or cudnn.',
  )
  _need(
    c.optimizer.learning_rate > 0,
    f'config.optimizer.learning_rate is {c.optimizer.learning_rate}; it must be positive.',
  )
  for field in ('b1', 'b2'):
    _need(
      0 <= c.optimizer[field] < 1,
      f'config.optimizer.{field} is {c.optimizer[field]}; it must lie in [0, 1).',
    )
  _need(
    c.objective.masking in ('uniform', 'words', 'spans'),
    f'config.objective.masking is {c.objective.masking!r}; it is uniform, words or spans.',
  )
  _need(
    0 < c.objective.span_p <= 1,
    f'config.objective.span_p is {c.objective.span_p}; it must be above 0 and at most 1.',
  )
  _need(
    c.objective.span_max >= 1,
    f'config.objective.span_max is {c.objective.span_max}; it must be at least 1.',
  )
  _need(
    not c.objective.google or c.objective.masking == 'uniform',
    f'config.objective.google draws tokens one by one, and config.objective.masking is {c.objective.masking!r}; leave one out.',
  )
  _need(
    0 < c.objective.mask_rate < 1,
    f'config.objective.mask_rate is {c.objective.mask_rate}; it must lie between 0 and 1.',
  )
  _need(
    0 <= c.objective.mask_share <= 1,
    f'config.objective.mask_share is {c.objective.mask_share}; it must lie in [0, 1].',
  )
  _need(
    c.objective.temperature >= 0,
    f'config.objective.temperature is {c.objective.temperature}; it must be at least 0.',
  )
  _need(
    c.data.workers >= 0,
    f'config.data.workers is {c.data.workers}; give a number of processes, or 0 for one a core.',
  )
  for field in ('lowercase', 'strip_accents', 'byte_fallback'):
    _need(
      c.data[field] in ('auto', 'yes', 'no'),
      f'config.data.{field} is {c.data[field]!r}; it is yes, no or auto.',
    )
  _need(
    c.data.row_format != 'segment_pair'
    or c.model.family != 'electra'
    or c.model.type_vocab_size >= 2,
    f"config.data.row_format 'segment_pair' needs two token types; config.model.type_vocab_size is {c.model.type_vocab_size}.",
  )
  _need(
    0 < c.data.heldout_fraction < 1,
    f'config.data.heldout_fraction is {c.data.heldout_fraction}; it must lie between 0 and 1.',
  )
  _need(
    c.data.reader in ('auto', 'tf', 'numpy'),
    f'config.data.reader is {c.data.reader!r}; it is auto, tf or numpy.',
  )
  _need(
    c.data.reader != 'tf' or importlib.util.find_spec('tensorflow') is not None,
    "config.data.reader is 'tf' and TensorFlow is not installed; install it, or use numpy, which gives the same batches.",
  )
  _need(
    c.sharing in ('embeddings', 'none', 'all', 'disentangled'),
    f'config.sharing is {c.sharing!r}; it is embeddings, none, all or disentangled.',
  )
  _check_objective(c)
  _check_schedules(c)
  _check_generator(c)
  _need(
    c.dtype in ('auto', 'float32', 'bfloat16'),
    f'config.dtype is {c.dtype!r}; it is auto, float32 or bfloat16.',
  )
  _need(
    c.save_every % c.eval_every == 0 or c.eval_every % c.save_every == 0,
    f'config.save_every {c.save_every} and config.eval_every {c.eval_every} do not meet; make one a multiple of the other.',
  )
  _need(
    len(c.profile_steps) == 2 and 0 <= c.profile_steps[0] <= c.profile_steps[1],
    f'config.profile_steps is {tuple(c.profile_steps)}; give its first and last step, as (10,12).',
  )
  _need(
    c.sharing == 'none'
    or c.generator.embedding_size in (0, c.model.embedding_size)
    or c.objective.name == 'mlm',
    f'config.generator.embedding_size {c.generator.embedding_size} needs embeddings of its own; config.sharing is {c.sharing!r}.',
  )
  _need(
    c.sharing != 'all'
    or c.objective.name == 'mlm'
    or (c.generator.hidden_fraction, c.generator.layers_fraction) == (1.0, 1.0),
    "config.sharing 'all' makes one tower of both; set config.generator.hidden_fraction and layers_fraction to 1.0.",
  )


def _has_budget(c):
  return any(c[field] for field in BUDGETS)


def _check_budget(c):
  named = [field for field in BUDGETS if c[field]]
  _need(len(named) <= 1, f'config.{" and config.".join(named)} each end the run; leave one out.')
  for field in named:
    _need(c[field] > 0, f'config.{field} is {c[field]}; it must be positive.')
    _need(
      not c.phases,
      f'config.{field} ends the run and config.phases have steps of their own; leave one out.',
    )
    _need(
      c.continued.optimizer != 'resumed',
      f"config.{field} begins a schedule, and config.continued.optimizer 'resumed' goes on with one; leave one out.",
    )
  _need(
    c.budget_convention in ('model', 'paper'),
    f'config.budget_convention is {c.budget_convention!r}; it is model or paper.',
  )


def _check_objective(c):
  name, generator = c.objective.name, c.generator
  _need(
    name in OBJECTIVES,
    f'config.objective.name is {name!r}; it is {", ".join(OBJECTIVES[:-1])} or {OBJECTIVES[-1]}.',
  )
  _need(
    name != 'mlm' or not (generator.uniform or generator.alone_steps),
    "config.objective.name 'mlm' has no generator; leave config.generator.uniform and alone_steps out.",
  )
  _need(
    name != 'electric' or not generator.uniform and c.sharing != 'all',
    "config.objective.name 'electric' has a generator of two towers of its own; leave config.generator.uniform out, and share embeddings or none.",
  )
  _need(
    name != 'electric' or (c.objective.temperature, c.objective.disallow_correct) == (1.0, False),
    "config.objective.name 'electric' weighs noise by what its generator says of it; leave config.objective.temperature at 1.0 and disallow_correct out.",
  )
  _need(
    not generator.uniform or not generator.alone_steps,
    'config.generator.uniform leaves nothing to train in config.generator.alone_steps; leave one out.',
  )


def _check_schedules(c):
  fitting = {
    'temperature': (lambda x: x >= 0, 'at least 0'),
    'mask_rate': (lambda x: 0 < x < 1, 'between 0 and 1'),
    'discriminator_weight': (lambda x: x >= 0, 'at least 0'),
  }

  def number(x):
    return isinstance(x, (int, float)) and not isinstance(x, bool)

  def pair(x):
    return isinstance(x, (tuple, list)) and len(x) == 2 and all(map(number, x))

  for name, (fits, where) in fitting.items():
    form, field = c.objective.schedules[name], f'config.objective.schedules.{name}'
    if not form:
      continue
    kind, *rest = form
    ends = {'linear': 2, 'exponential': 3}.get(kind, 0)
    points = (
      kind == 'points'
      and rest
      and all(map(pair, rest))
      and all(a[0] < b[0] for a, b in itertools.pairwise(rest))
      and rest[0][0] >= 0
    )
    _need(
      points
      or ends
      and len(rest) == ends
      and all(map(number, rest))
      and (ends == 2 or rest[2] > 0),
      f"{field} is {form!r}; it is ('linear', from, to), ('exponential', from, to, decay as a share of the run), or ('points', (step, value), ...) "
      'with ascending steps.',
    )
    _need(
      all(map(fits, [value for _, value in rest] if points else rest[:2])),
      f'{field} is {form!r}; its values must be {where}.',
    )
    _need(
      name != 'mask_rate' or not any('objective.mask_rate' in phase for phase in c.phases),
      f'config.phases set objective.mask_rate and so does {field}; leave one out.',
    )
    idle = {
      'temperature': ('mlm', 'electric'),
      'discriminator_weight': ('mlm', 'replace_mlm', 'all_tokens_mlm'),
    }.get(name, ())
    _need(
      c.objective.name not in idle,
      f'{field} changes nothing where config.objective.name is {c.objective.name!r}; leave it out.',
    )


def _check_generator(c):
  g, rate, own = (
    c.generator,
    c.optimizer.generator_learning_rate,
    c.sharing in ('none', 'disentangled'),
  )
  why = (
    f'config.objective.name {c.objective.name!r} has one tower'
    if c.objective.name == 'mlm'
    else 'config.generator.uniform leaves no generator'
    if g.uniform
    else ''
  )
  _need(
    not g.uniform or c.objective.temperature == 1 and not c.objective.schedules.temperature,
    'config.generator.uniform draws every token as often, at any temperature; leave config.objective.temperature and its schedule out.',
  )
  _need(
    rate >= 0,
    f'config.optimizer.generator_learning_rate is {rate}; it must be positive, or 0 for one optimizer.',
  )
  no_rate = (
    why
    or (c.sharing == 'all' and "config.sharing 'all' makes one tower of both")
    or (g.frozen and 'config.generator.frozen lets it learn nothing')
  )
  _need(
    not rate or not no_rate,
    f'config.optimizer.generator_learning_rate needs a generator that learns by itself, and {no_rate}; leave it out.',
  )
  for field in filter(g.get, ('init', 'frozen')):
    _need(
      not why and c.objective.name != 'electric',
      f'config.generator.{field} is about a generator of one tower, and '
      f'{why or "electric has one of two"}; leave it out.',
    )
    _need(
      own or not c.init,
      f'config.generator.{field} needs a generator with embeddings of its own, and that of config.init shares them; name another with '
      '--config.continued.generator=hf:FOLDER.',
    )
    _need(
      own,
      f'config.generator.{field} needs a generator with embeddings of its own, and config.sharing is {c.sharing!r}; set --config.sharing=none '
      'or disentangled.',
    )
  _need(
    not g.init or not c.init,
    'config.generator.init makes the generator of a fresh discriminator, and config.init names one that is there; name '
    'its generator with --config.continued.generator=hf:FOLDER.',
  )
  _need(
    not g.init or c.data.store or c.data.tokenizer not in ('unigram', 'bpe', 'wordpiece'),
    f'config.data.tokenizer {c.data.tokenizer!r} trains another vocabulary than that of config.generator.init; set --config.data.tokenizer=init.',
  )
  _need(
    not g.frozen or g.init or c.init and c.continued.generator not in ('scratch', 'narrowed'),
    'config.generator.frozen keeps a generator as its weights are, and it has none; name them with --config.generator.init=hf:FOLDER.',
  )
  _need(
    not g.frozen or not g.alone_steps,
    'config.generator.frozen leaves nothing to train in config.generator.alone_steps; leave one out.',
  )


def check_init(config) -> None:
  """`check` of config.init and what belongs to it: all that can be told before its weights are read, which decide the sizes."""
  c = config
  check_fields(c, default_config(), 'electra_jax/config.py')
  choices = {
    'optimizer': ('fresh', 'kept', 'resumed'),
    'new_tokens': ('refuse', 'mean', 'pieces'),
    'positions': ('refuse', 'interpolated', 'repeated'),
  }
  for field, names in choices.items():
    _need(
      c.continued[field] in names,
      f'config.continued.{field} is {c.continued[field]!r}; it is {", ".join(names[:-1])} or {names[-1]}.',
    )
  made = c.continued.generator
  _need(
    made in ('', 'scratch', 'narrowed') or made.startswith('hf:'),
    f'config.continued.generator is {made!r}; it is hf:FOLDER, scratch, narrowed, or empty for that of config.init.',
  )
  if not c.init:
    defaults = default_config()
    for field, value in [
      *flat(c.continued, 'continued.').items(),
      ('data.new_words', c.data.new_words),
    ]:
      _need(
        value == flat(defaults)[field],
        f'config.{field} belongs to config.init, which is empty; name the weights to go on from, or leave it out.',
      )
    _need(
      c.data.tokenizer != 'init' or c.generator.init,
      "config.data.tokenizer is 'init' and config.init is empty; name the weights to go on from, or a tokenizer.",
    )
    return
  _need(
    c.data.store or c.data.tokenizer not in ('unigram', 'bpe', 'wordpiece'),
    f'config.data.tokenizer {c.data.tokenizer!r} trains another vocabulary than that of config.init; set --config.data.tokenizer=init, or a '
    'tokenizer that has its tokens and more.',
  )
  _need(
    not c.data.new_words or c.data.tokenizer == 'init',
    'config.data.new_words adds to the tokenizer of config.init; set --config.data.tokenizer=init.',
  )
  _need(
    not c.data.new_words or c.continued.new_tokens != 'refuse',
    'config.data.new_words makes tokens that config.init has no rows of; say what they begin with: --config.continued.new_tokens=mean or pieces.',
  )
  _need(
    c.continued.step == 'last' or not c.init.startswith(('hf:', 'tf:')),
    f'config.continued.step chooses a checkpoint of a run, and config.init is {c.init!r}; leave it out.',
  )
  _check_forms(c.phases)
  _need(
    c.continued.optimizer != 'resumed' or not c.generator.alone_steps,
    "config.continued.optimizer 'resumed' goes on in the middle of the schedule, and config.generator.alone_steps begins it; leave one out.",
  )


def _check_forms(given):
  """That config.phases are dicts of what a phase may set."""
  for number, phase in enumerate(given, 1):
    _need(
      isinstance(phase, Mapping) and isinstance(phase.get('steps'), int) and phase['steps'] >= 1,
      f"config.phases: phase {number} is {phase!r}; give a dict with its steps, as {{'steps': 1000, 'sequence_length': 128}}.",
    )
    for field, value in phase.items():
      _need(
        field in PHASE_FIELDS,
        f'config.phases: phase {number} sets {field!r}; a phase may set {", ".join(PHASE_FIELDS)}.',
      )
      kind = type(flat(default_config())[field])
      _need(
        isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool),
        f'config.phases: {field} of phase {number} is {value!r}; it must be of type {kind.__name__}.',
      )


def _check_phases(c):
  alone, first = c.generator.alone_steps, c.phases[0] if c.phases else {}
  if alone:
    steps = first.get('steps', c.steps) if isinstance(first, Mapping) else c.steps
    _need(
      0 < alone and (alone < steps or _has_budget(c)),
      f'config.generator.alone_steps is {alone}; it must lie between 0 and the {steps} steps'
      + (' of the first of config.phases.' if c.phases else '.'),
    )
    _need(
      c.sharing != 'all',
      "config.generator.alone_steps needs a generator of its own; config.sharing 'all' makes one tower of both.",
    )
  if not c.phases:
    if alone and not _has_budget(c):
      check(phases(c)[1].config)
    return
  _check_forms(c.phases)
  _need(
    not c.optimizer.warmup_fraction
    or not any('optimizer.warmup_steps' in phase for phase in c.phases),
    'config.optimizer.warmup_fraction takes the place of the optimizer.warmup_steps that config.phases set; leave one out.',
  )
  total = sum(phase['steps'] for phase in c.phases)
  _need(
    total == c.steps,
    f'config.phases have {total} steps in all and config.steps is {c.steps}; make it {total}.',
  )
  for field in PHASE_FIELDS[1:]:  # what would be of no effect is a mistake
    given, own = [phase.get(field) for phase in c.phases], flat(c)[field]
    _need(
      None in given or own == given[0],
      f'config.{field} is {own!r} and each of config.phases sets its own; change it there, and let '
      f'config.{field} be that of the first, {given[0]!r}.',
    )
  for number, phase in enumerate(phases(c), 1):
    try:
      check(phase.config)
    except UserError as error:
      raise UserError(f'in phase {number}, {error}') from None


class Phase(NamedTuple):
  """Steps of a run that share a config: rows, batches and schedule of their own."""

  first: int  # steps of the run before it
  last: int  # steps of the run after it
  config: Any  # with the phase's fields in place; its `steps` are the phase's, `phases` is empty
  alone: bool  # the generator learns alone


def phases(config) -> list[Phase]:
  """The phases of a config; the config itself is the only one where it names none. Steps of the generator alone are one before them."""
  found, parts = [], [dict(fields) for fields in config.phases or ({'steps': config.steps},)]
  if alone := config.generator.alone_steps:
    warmup = parts[0].get('optimizer.warmup_steps', config.optimizer.warmup_steps)
    parts = [
      parts[0] | {'steps': alone, 'optimizer.warmup_steps': min(warmup, alone // 10)},
      parts[0] | {'steps': parts[0]['steps'] - alone},
      *parts[1:],
    ]
  for fields in parts:
    c = copy.deepcopy(config)
    with c.unlocked():
      c.phases, c.generator.alone_steps = (), 0
      for field, value in fields.items():
        *groups, name = field.split('.')
        group = c[groups[0]] if groups else c
        group[name] = type(group[name])(value)
      if c.optimizer.warmup_fraction:
        c.optimizer.warmup_steps, c.optimizer.warmup_fraction = (
          int(c.optimizer.warmup_fraction * c.steps),
          0.0,
        )
    first = found[-1].last if found else 0
    found.append(Phase(first, first + c.steps, c, bool(alone) and not found))
  return found


def completed(plain: dict, defaults: dict | None = None) -> dict:
  """A config as JSON has it, with the defaults of fields that there were not when it was written."""
  defaults = to_plain(default_config()) if defaults is None else defaults

  def both(name, value):
    return isinstance(value, dict) and isinstance(defaults.get(name), dict)

  return defaults | {
    name: completed(value, defaults[name]) if both(name, value) else value
    for name, value in plain.items()
  }


def differences(
  old: dict, new: dict, prefix: str = '', free: tuple[str, ...] = FREE_ON_RESUME
) -> list[str]:
  """Fields that differ between two configs as plain dicts, as 'field: old -> new', but for those that are free to."""
  lines = []
  for name in sorted(set(old) | set(new)):
    field, a, b = prefix + name, old.get(name), new.get(name)
    if isinstance(a, dict) and isinstance(b, dict):
      lines += differences(a, b, field + '.', free)
    elif a != b and not any(
      field == name or name.endswith('.') and field.startswith(name) for name in free
    ):
      lines.append(f'{field}: {a!r} -> {b!r}')
  return lines


def to_plain(config) -> dict:
  """The config as JSON has it (tuples become lists)."""
  return json.loads(config.to_json())


def from_plain(plain: dict, defaults=None):
  """A config from its JSON, over the defaults (default_config's), so that a run made before a field was added still opens."""
  config = default_config() if defaults is None else defaults
  with config.unlocked():
    config.update(
      ml_collections.ConfigDict(
        {name: tuple(v) if isinstance(v, list) else v for name, v in plain.items()}
      )
    )
  return config
