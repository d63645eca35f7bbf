"""Reads and checks a fine-tuning config: all fields with their meaning, and what they leave to the task and to the encoder's size."""

import ml_collections

from electra_jax import config as configs
from electra_jax.errors import UserError
from electra_jax.interop.sources import is_foreign
from electra_jax.model.heads import POOLINGS, STYLES

# What may differ when a run is gone on with. More trials may be asked for; those that are done stay.
FREE_ON_RESUME = (
  'compilation_cache',
  'eval_batch_size',
  'keep_trials',
  'num_trials',
  'skip_nonfinite',
  'save_every',
  'mesh.',
  'sharding.',
)
# Learning rate and layer-wise decay of Clark et al. 2020, table 7, by the widest encoder that they are for.
BY_SIZE = ((256, 3e-4, 0.8), (768, 1e-4, 0.8), (None, 5e-5, 0.9))
FROZEN_RATE = 1e-2  # of a head on an encoder that stays as it is; docs/finetuning.md has what it was measured on


def default_config() -> ml_collections.ConfigDict:
  """All fields with their defaults: the published recipe (Clark et al. 2020, table 7, and the original's configure_finetuning.py)."""
  c = ml_collections.ConfigDict()
  c.name = 'finetune'  # names the default workdir, runs/<name>
  c.init = ''  # a pretrained run's folder, or a task's in a fine-tuned run; hf:FOLDER; tf:CHECKPOINT; 'none': fresh weights
  c.init_step = 'last'  # a run's checkpoint: last, best (by its held-out loss) or a step
  c.like = (
    ''  # init='none': the run whose encoder sizes and tokenizer are taken, and not its weights
  )
  c.task = 'cola'  # or several with commas; docs/finetuning.md lists them
  c.frozen = False  # the encoder stays as it was pretrained, bit for bit, and the head alone learns: a probe of what is in it
  c.seed = 0  # of the first trial's head, batches and dropout; each further trial's is one more
  c.num_trials = 1  # runs with different seeds
  c.keep_trials = 'best'  # whose weights stay: best, all or none
  c.epochs = 0.0  # 0: as published for the task
  c.batch_size = 32  # rows a step, over all devices
  c.max_length = 0  # tokens a row at most; 0: as published for the task
  c.bucketed = (
    True  # rows of like length together, padded to 16, 32, 64, ...; else all to max_length
  )
  c.train_examples = 0  # use so many, chosen by `seed`'s first value of all trials; 0: all
  c.eval_every = 1.0  # epochs between looks at the dev set; 0: at the end alone
  c.select = 'last'  # a trial's figures and weights: those at its end, as published, or the best by the dev figure
  c.patience = 0  # end a trial after so many looks without a better dev figure; 0: never

  c.data = data = ml_collections.ConfigDict()
  data.source = (
    ''  # a folder in the task's original layout, or tfds:glue/cola; '' where the files are named
  )
  data.train = ''  # one's own files, here or at gs://
  data.dev = ''
  data.test = ''
  data.format = 'auto'  # by the file's name, or tsv, csv, jsonl, json, conll, conllu
  data.text = 'text'  # column of the text; span: of the question
  data.pair = ''  # column of the second text; span: of the context
  data.label = 'label'  # column of the label, value, tags or answers
  data.tags = (
    'auto'  # conll: the tags' column from 0, -1 the last; conllu: upos, xpos or a key of MISC
  )
  data.ignore_labels = ''  # tagging: types, with commas, that count as O
  data.repair_tags = 'refuse'  # tagging: I- tags that follow nothing they could: refuse, or repair them as conlleval reads them
  data.max_question = 64  # span: tokens of a question
  data.stride = 128  # span: tokens from one window on a context to the next
  data.max_answer = 30  # span: tokens of an answer
  data.n_best = 20  # span: answers that are weighed up

  c.head = head = ml_collections.ConfigDict()
  head.style = 'published'  # transformers: the layers that its ElectraFor... and ModernBertFor... have, for --mode=export
  head.dropout = -1.0  # of the head; -1: as published, 0.1 for classification and regression, else 0, or as in transformers
  head.pooling = 'cls'  # classification, regression: cls as published, or the mean over the tokens
  head.beam = 20  # span: starts, and ends of each
  head.impossible_weight = 0.5  # span, as published: of the loss of whether there is an answer

  c.model = model = (
    ml_collections.ConfigDict()
  )  # what may differ from the pretrained encoder's config
  model.dropout = 0.1  # of embeddings and sublayer outputs; none where the encoder is frozen
  model.attention_dropout = (
    0.1  # of attention probabilities; the fast kernels have none, a frozen encoder neither
  )
  model.attention = 'auto'  # kernel: xla, splash (TPU), cudnn (GPU), or auto
  model.remat = 'none'  # what the backward pass computes again: none, dots or full
  model.scan_unroll = 0  # layers an iteration of the scan; 0: all on CPU, one elsewhere

  c.optimizer = optimizer = ml_collections.ConfigDict()
  optimizer.learning_rate = 0.0  # the peak; 0: by the encoder's width, 3e-4 to 256, 1e-4 to 768, 5e-5 beyond (table 7); frozen: 1e-2
  optimizer.layer_decay = (
    0.0  # of the rate, from layer to layer down; 1: none; 0: by width, 0.8, 0.8, 0.9
  )
  optimizer.published_depths = (
    False  # the original's depths, where the last layer learns at layer_decay squared
  )
  optimizer.warmup = 0.1  # share of the steps
  optimizer.b1 = 0.9
  optimizer.b2 = 0.999
  optimizer.eps = 1e-6
  optimizer.weight_decay = 0.01  # as in the original's code; table 7 says 0
  optimizer.clip = 1.0  # largest global norm of the gradients; 0: no clipping
  optimizer.bias_correction = False  # False as published

  shared = configs.default_config()
  c.mesh, c.sharding = shared.mesh, shared.sharding
  c.dtype = (
    'auto'  # of matrix products: auto (bfloat16 on TPU and GPU, float32 on CPU), float32, bfloat16
  )
  c.micro_batches = 1  # parts a device's rows are split into
  c.skip_nonfinite = False  # leave out steps whose loss or gradient is not finite, rather than stop
  c.log_every = 50  # steps between lines of figures
  c.save_every = (
    500  # steps between checkpoints to go on from; each look at the dev set makes one too
  )
  c.eval_batch_size = 64  # rows a step of evaluation and prediction
  c.compilation_cache = (
    '~/.cache/electra_jax/xla'  # compiled programs, kept for the next start; '': not kept
  )
  return c


def tasks(config) -> list[str]:
  """Names of the tasks of a config, in its order."""
  return [name.strip() for name in config.task.split(',') if name.strip()]


def _need(condition, message):
  if not condition:
    raise UserError(message)


def check(config) -> None:
  """Raises UserError for a field that cannot be, or two that contradict each other, before anything is read."""
  c = config
  configs.check_fields(c, default_config(), 'electra_jax/finetune/config.py')
  _need(
    c.init,
    'config.init is empty; name the folder of a pretrained run (--config.init=runs/small), hf:FOLDER, tf:CHECKPOINT, or none for fresh weights.',
  )
  _need(
    c.init != 'none' or c.like,
    "config.init is 'none' and config.like names no run; name one whose encoder sizes and tokenizer to take "
    '(--config.like=runs/small).',
  )
  _need(c.init == 'none' or not c.like, "config.like belongs to config.init='none'; leave it out.")
  _need(
    c.init_step == 'last' or not is_foreign(c.init),
    f'config.init_step is of runs, and config.init is {c.init!r}; leave it out.',
  )
  _need(tasks(c), 'config.task is empty; name one, as in --config.task=cola.')
  _need(len(set(tasks(c))) == len(tasks(c)), f'config.task {c.task!r} names a task twice.')
  for field in (
    'num_trials',
    'batch_size',
    'micro_batches',
    'log_every',
    'save_every',
    'eval_batch_size',
  ):
    _need(c[field] >= 1, f'config.{field} is {c[field]}; it must be at least 1.')
  _need(
    0 <= c.seed and c.seed + c.num_trials <= 2**32,
    f'config.seed is {c.seed}; the seeds of all trials must lie between 0 and 2**32.',
  )
  for field in ('clip', 'weight_decay', 'eps'):
    _need(
      c.optimizer[field] >= 0,
      f'config.optimizer.{field} is {c.optimizer[field]}; it must not be negative.',
    )
  _need(
    c.head.impossible_weight >= 0,
    f'config.head.impossible_weight is {c.head.impossible_weight}; it must not be negative.',
  )
  for field in ('epochs', 'eval_every', 'patience', 'train_examples'):
    _need(c[field] >= 0, f'config.{field} is {c[field]}; it must not be negative.')
  _need(
    c.max_length == 0 or c.max_length >= 8,
    f'config.max_length is {c.max_length}; it must be at least 8, or 0 for as published.',
  )
  _need(
    c.batch_size % c.micro_batches == 0,
    f'config.batch_size {c.batch_size} does not divide into {c.micro_batches} micro-batches.',
  )
  _need(c.select in ('last', 'best'), f'config.select is {c.select!r}; it is last or best.')
  _need(
    c.eval_every or not c.patience,
    'config.patience counts looks at the dev set, and config.eval_every is 0; set one of the two.',
  )
  _need(
    c.eval_every or c.select == 'last',
    "config.select 'best' needs looks at the dev set, and config.eval_every is 0; set it to 1.0.",
  )
  _need(
    c.keep_trials in ('best', 'all', 'none'),
    f'config.keep_trials is {c.keep_trials!r}; it is best, all or none.',
  )
  _need(
    c.head.style in STYLES, f'config.head.style is {c.head.style!r}; it is {" or ".join(STYLES)}.'
  )
  _need(
    c.head.pooling in POOLINGS,
    f'config.head.pooling is {c.head.pooling!r}; it is {" or ".join(POOLINGS)}.',
  )
  _need(
    c.head.dropout == -1 or 0 <= c.head.dropout < 1,
    f'config.head.dropout is {c.head.dropout}; it must lie in [0, 1), or be -1.',
  )
  _need(c.head.beam >= 1, f'config.head.beam is {c.head.beam}; it must be at least 1.')
  _need(
    c.optimizer.learning_rate >= 0,
    f'config.optimizer.learning_rate is {c.optimizer.learning_rate}; it must be positive, or 0 for as published.',
  )
  _need(
    not c.frozen or not c.optimizer.layer_decay and not c.optimizer.published_depths,
    'config.optimizer.layer_decay and published_depths are of encoders that learn, and config.frozen keeps this one as it is; leave them out.',
  )
  _need(
    0 <= c.optimizer.layer_decay <= 1,
    f'config.optimizer.layer_decay is {c.optimizer.layer_decay}; it must lie in (0, 1], or be 0.',
  )
  _need(
    0 <= c.optimizer.warmup < 1,
    f'config.optimizer.warmup is {c.optimizer.warmup}; it is a share of the steps, in [0, 1).',
  )
  for field in ('b1', 'b2'):
    _need(
      0 <= c.optimizer[field] < 1,
      f'config.optimizer.{field} is {c.optimizer[field]}; it must lie in [0, 1).',
    )
  for field in ('dropout', 'attention_dropout'):
    _need(
      0 <= c.model[field] < 1, f'config.model.{field} is {c.model[field]}; it must lie in [0, 1).'
    )
  _need(
    c.dtype in ('auto', 'float32', 'bfloat16'),
    f'config.dtype is {c.dtype!r}; it is auto, float32 or bfloat16.',
  )
  _need(
    c.data.repair_tags in ('refuse', 'repair'),
    f'config.data.repair_tags is {c.data.repair_tags!r}; it is refuse or repair.',
  )


def rates(config, hidden_size: int) -> tuple[float, float]:
  """Learning rate and layer-wise decay: the config's, or the published ones for an encoder of this width; of a frozen one FROZEN_RATE and 1."""
  if config.frozen:
    return config.optimizer.learning_rate or FROZEN_RATE, 1.0
  rate, decay = next(
    (rate, decay) for widest, rate, decay in BY_SIZE if widest is None or hidden_size <= widest
  )
  return config.optimizer.learning_rate or rate, config.optimizer.layer_decay or decay
