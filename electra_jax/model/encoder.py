"""Embeddings, the layers of all families, and the encoder, a scan over its layers."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from electra_jax.model.attention import (
  AttentionSettings,
  attention,
  rotary_tables,
  rotate,
)
from electra_jax.model.config import EncoderConfig
from electra_jax.model.dropout import dropout, fold_in
from electra_jax.model.kernels import RESIDUALS, divided
from electra_jax.model.products import ProductSettings, product, saved_as
from electra_jax.model.relative import bucket_rows, disentangled_attention

Initializer = Callable[..., jax.Array]  # (key, shape, dtype) -> array, as in jax.nn.initializers

PRODUCT = 'product'  # names the outputs of dense layers, for remat='dots'


class Inputs(NamedTuple):
  """What an encoder reads, each int32 `[batch, length]`.

  Attributes:
    token_ids: ids of the tokens.
    segment_ids: positions with equal numbers attend to each other; 0 is padding.
    positions: they restart at 0 in each packed document.
    type_ids: token types: 0, and 1 for the second text of a pair.
  """

  token_ids: jax.Array
  segment_ids: jax.Array
  positions: jax.Array
  type_ids: jax.Array


def packed_inputs(token_ids: jax.Array, pad_id: int, cls_id: int, sep_id: int) -> Inputs:
  """The inputs of packed rows, computed on the device from the token ids only.

  Each [CLS] starts a document. Documents do not attend to each other, and positions restart in
  each. What follows the first [SEP] of a document has type 1: it is the second segment of a pair.
  A document of one segment ends with its only [SEP].

  Args:
    token_ids: integers `[batch, length]`.
    pad_id: id of [PAD].
    cls_id: id of [CLS].
    sep_id: id of [SEP].
  """
  token_ids = token_ids.astype(jnp.int32)
  starts = token_ids == cls_id
  real = token_ids != pad_id
  index = jnp.broadcast_to(jnp.arange(token_ids.shape[1], dtype=jnp.int32), token_ids.shape)
  start_of = jax.lax.cummax(jnp.where(starts, index, 0), axis=1)
  ends = token_ids == sep_id
  ends_before = jnp.cumsum(ends, axis=1, dtype=jnp.int32) - ends
  ends_before_piece = jax.lax.cummax(jnp.where(starts, ends_before, 0), axis=1)
  return Inputs(
    token_ids=token_ids,
    segment_ids=jnp.where(real, jnp.maximum(jnp.cumsum(starts, axis=1, dtype=jnp.int32), 1), 0),
    positions=jnp.where(real, index - start_of, 0),
    type_ids=jnp.where(real & (ends_before > ends_before_piece), 1, 0),
  )


def truncated_normal(std: float) -> Initializer:
  """A normal distribution truncated at two standard deviations, as in BERT and ModernBERT.

  Args:
    std: standard deviation before truncation. The initializer of JAX rescales, so that it is the
      deviation after truncation; that of the original program does not.
  """
  return lambda key, shape, dtype=jnp.float32: (
    std * jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)
  )


def partitioned(init: Initializer, axes: tuple[str, ...]) -> Initializer:
  """An initializer whose array has logical axes; Module.param returns the array without them."""
  return cast(Initializer, nn.with_logical_partitioning(init, axes))


def parameter(
  module: nn.Module,
  name: str,
  init: Initializer,
  shape: tuple[int, ...],
  axes: tuple[str, ...],
) -> jax.Array:
  """Creates a float32 parameter with logical axes, and returns it as a layer uses it.

  Parameters that are split over devices only to save memory are gathered here.

  Args:
    module: the layer.
    name: of the parameter.
    init: its initializer.
    shape: its shape.
    axes: name of each axis.
  """
  if not module.is_initializing():
    # Flax traces the initializer at each use to compare shapes; this one takes a tenth of the time.
    init = nn.initializers.zeros
  value: jax.Array = module.param(name, partitioned(init, axes), shape, jnp.float32)
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or not nn.get_logical_axis_rules():
    return value
  spec = PartitionSpec(*(divided(mesh, *axis) for axis in zip(axes, shape, strict=True)))
  gathered: jax.Array = jax.lax.with_sharding_constraint(value, spec)
  return gathered


class Dense(nn.Module):
  """A dense layer with a kernel `[in, out]`.

  Attributes:
    features: width of the output.
    axes: logical axes of the kernel.
    kernel_init: initializer of the kernel.
    use_bias: whether it has a bias.
    dtype: of the product and the output.
    products: how the product is computed.
  """

  features: int
  axes: tuple[str, str]
  kernel_init: Initializer
  use_bias: bool
  dtype: DTypeLike
  products: ProductSettings

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`[..., in]` -> `[..., features]`."""
    kernel = parameter(self, 'kernel', self.kernel_init, (x.shape[-1], self.features), self.axes)
    rows = x.astype(self.dtype)
    if self.products.flat:
      rows = rows.reshape(-1, x.shape[-1])
    y = product(rows, kernel, self.products)
    if self.use_bias:
      y += self.param(
        'bias',
        partitioned(nn.initializers.zeros, self.axes[1:]),
        (self.features,),
        jnp.float32,
      )
    output = saved_as(y.astype(self.dtype), PRODUCT, self.products)
    return output.reshape(*x.shape[:-1], self.features)


def dense(
  config: EncoderConfig,
  features: int,
  axes: tuple[str, str],
  name: str,
  *,
  init: Initializer | None = None,
  use_bias: bool | None = None,
  dtype: DTypeLike | None = None,
) -> Dense:
  """A dense layer with the defaults of a config.

  Args:
    config: of the encoder.
    features: width of the output.
    axes: logical axes of the kernel.
    name: of the layer.
    init: initializer of the kernel; None for that of the config.
    use_bias: whether it has a bias; None for what the config has.
    dtype: of the product; None for that of the config.
  """
  return Dense(
    features,
    axes,
    init or truncated_normal(config.initializer_range),
    config.use_bias if use_bias is None else use_bias,
    dtype or config.dtype,
    config.products,
    name=name,
  )


def layer_norm(config: EncoderConfig, name: str, dtype: DTypeLike | None = None) -> nn.LayerNorm:
  """LayerNorm with float32 statistics, with a bias where the family has biases.

  Args:
    config: of the encoder.
    name: of the layer.
    dtype: of the output; None for that of the config.
  """
  return nn.LayerNorm(
    name=name,
    epsilon=config.layer_norm_eps,
    use_fast_variance=False,
    use_bias=config.use_bias,
    dtype=dtype or config.dtype,
    param_dtype=jnp.float32,
    scale_init=nn.with_logical_partitioning(nn.initializers.ones, ('norm',)),
    bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ('norm',)),
  )


def gelu(x: jax.Array) -> jax.Array:
  """The exact GELU, with erf in float32, as in most families."""
  # jax.nn.gelu uses erfc in the type of x: it is slower on a CPU, and rounds differently from the
  # original program and PyTorch.
  y = x.astype(jnp.float32)
  return (0.5 * y * (1 + jax.lax.erf(y * 0.5**0.5))).astype(x.dtype)


def activation(config: EncoderConfig, x: jax.Array) -> jax.Array:
  """The activation of feed-forward layers and of pretraining heads."""
  if config.activation == 'gelu':
    return gelu(x)
  return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


class Embeddings(nn.Module):
  """Word embeddings, position and type embeddings where the family has them, LayerNorm, dropout.

  Attributes:
    config: of the encoder.
    difference: whether the tables are a difference from the tables of another module, initialized
      with zeros (He et al. 2021, section 3.3).
  """

  config: EncoderConfig
  difference: bool = False

  def setup(self) -> None:
    """Creates the tables and the norm."""
    c = self.config
    init = nn.initializers.zeros if self.difference else truncated_normal(c.initializer_range)

    def table(name: str, rows: int, axis: str) -> jax.Array:
      return parameter(self, name, init, (rows, c.embedding_size), (axis, 'embed'))

    self.word = table('word', c.padded_vocab_size, 'vocab')
    if c.has_position_table:
      self.position = table('position', c.max_positions, 'positions')
    if c.traits.has_type_table:
      self.type = table('type', c.type_vocab_size, 'types')
    self.norm = layer_norm(c, 'norm', c.residual_dtype)

  def tables(self, base: Mapping[str, jax.Array] | None = None) -> dict[str, jax.Array]:
    """The tables by name.

    Args:
      base: tables of another module that these are the difference from: they are added, and get no
        gradient.
    """
    tables = {'word': self.word}
    if self.config.has_position_table:
      tables['position'] = self.position
    if self.config.traits.has_type_table:
      tables['type'] = self.type
    if not base:
      return tables
    return {name: table + jax.lax.stop_gradient(base[name]) for name, table in tables.items()}

  def __call__(
    self,
    inputs: Inputs,
    keys: jax.Array | None = None,
    base: Mapping[str, jax.Array] | None = None,
  ) -> jax.Array:
    """Embeds tokens.

    Args:
      inputs: int32 `[batch, length]` each.
      keys: of dropout, one threefry key per row; None for no dropout.
      base: as of `tables`.

    Returns:
      `[batch, length, embedding_size]`.
    """
    c, tables = self.config, self.tables(base)
    x = jnp.take(tables['word'], inputs.token_ids, axis=0)
    if c.has_position_table:
      x += jnp.take(tables['position'], inputs.positions, axis=0)
    if c.has_token_types:
      one_hot = jax.nn.one_hot(inputs.type_ids, c.type_vocab_size, dtype=x.dtype)
      x += jnp.matmul(one_hot, tables['type'], precision=c.products.of(x.dtype))
    elif c.traits.has_type_table:
      x += tables['type'][0]
    return by_rows(dropout(self.norm(x), c.dropout, keys, 0, c.dropout_settings))


def by_rows(x: jax.Array) -> jax.Array:
  """Lays out activations `[batch, length, ...]` so that each device has whole rows."""
  constrained: jax.Array = nn.with_logical_constraint(x, ('batch', *[None] * (x.ndim - 1)))
  return constrained


# What a layer gets from the layer before: hidden states or, with `pre_norm`, the residual stream
# and its normalized copy.
Carry = jax.Array | tuple[jax.Array, jax.Array]


class Layer(nn.Module):
  """One layer of any family, as the body of a scan over layers.

  Attributes:
    config: of the encoder.
    keeps_state: whether it outputs its state, so that the scan stacks those of all layers.
  """

  config: EncoderConfig
  keeps_state: bool = False

  def _attend(
    self,
    x: jax.Array,
    shared: Mapping[str, Any],
    per_layer: Mapping[str, jax.Array],
    keys: jax.Array | None,
  ) -> jax.Array:
    c = self.config

    def split(y: jax.Array) -> jax.Array:
      return y.reshape(*y.shape[:-1], c.num_heads, c.head_size)

    of_query, of_key, of_value = (
      dense(c, c.hidden_size, ('embed', 'heads'), name) for name in ('query', 'key', 'value')
    )
    query, key, value = (split(layer(x)) for layer in (of_query, of_key, of_value))
    if c.traits.rotary:
      tables = jax.tree.map(
        lambda far, near: jnp.where(per_layer['is_global'], far, near), *shared['rotary']
      )
      query, key = rotate(query, tables), rotate(key, tables)
    settings = AttentionSettings(
      kernel=c.attention,
      reach=c.local_window // 2,
      direction=c.direction,
      dropout_rate=c.attention_dropout,
      dropout=c.dropout_settings,
      products=c.products,
    )
    if c.traits.relative:
      distances = (split(layer(shared['distances'])) for layer in (of_query, of_key))
      x = disentangled_attention(
        query, key, value, tuple(distances), shared['segment_ids'], settings, keys
      )
    else:
      is_global = per_layer.get('is_global') if c.global_every > 1 else None
      x = attention(query, key, value, shared['segment_ids'], is_global, settings, keys)
    x = dense(c, c.hidden_size, ('heads', 'embed'), 'attention_output', init=self._output_init())(
      x.reshape(*x.shape[:2], c.hidden_size)
    )
    return dropout(x, c.dropout, keys, 2, c.dropout_settings)

  def _output_init(self) -> Initializer:
    # ModernBERT scales the initial weights of what is added to the residual stream by the number of
    # additions.
    c = self.config
    return truncated_normal(
      c.initializer_range / ((2 * c.num_layers) ** 0.5 if c.traits.pre_norm else 1)
    )

  @nn.compact
  def __call__(
    self, carry: Carry, shared: Mapping[str, Any], per_layer: Mapping[str, jax.Array]
  ) -> tuple[Carry, jax.Array | None]:
    """Computes one layer.

    Args:
      carry: `[batch, length, hidden]`, or the residual stream and its normalized copy (`pre_norm`).
      shared: what all layers have in common: `segment_ids` `[batch, length]`, `keys` `[batch]` or
        None, `rotary` where positions are, and `distances` where they are relative.
      per_layer: `index`, an int32 scalar, and `is_global`, a boolean scalar (`rotary`).

    Returns:
      The carry for the next layer, and what the scan stacks: `[batch, length, hidden]`, with
      `pre_norm` the residual stream; nothing unless the layer keeps its state.
    """
    c = self.config
    keys = fold_in(shared['keys'], per_layer['index'])
    if not isinstance(carry, tuple):  # norms follow what they normalize
      wide = c.residual_dtype
      attended = self._attend(carry, shared, per_layer, keys)
      x = layer_norm(c, 'attention_norm', wide)(carry + attended)
      y = activation(c, dense(c, c.intermediate_size, ('embed', 'mlp'), 'mlp_in')(x))
      y = dense(c, c.hidden_size, ('mlp', 'embed'), 'mlp_output')(y)
      y = dropout(y, c.dropout, keys, 3, c.dropout_settings)
      x = by_rows(layer_norm(c, 'mlp_norm', wide)(x + y))
      return x, x if self.keeps_state else None
    # The first layer of ModernBERT has no norm before its attention, and a norm follows the last
    # layer. Each layer of the scan therefore has the norm that follows it: the parameters are the
    # same, and all layers have the same form.
    stream, x = carry
    stream = stream + self._attend(x, shared, per_layer, keys)
    x = layer_norm(c, 'mlp_norm')(stream)
    y = activation(c, dense(c, c.intermediate_size, ('embed', 'mlp'), 'mlp_in')(x))
    y = y * dense(c, c.intermediate_size, ('embed', 'mlp'), 'mlp_gate')(x)
    y = dense(c, c.hidden_size, ('mlp', 'embed'), 'mlp_output', init=self._output_init())(y)
    stream = by_rows(stream + dropout(y, c.dropout, keys, 3, c.dropout_settings))
    return (stream, layer_norm(c, 'next_norm')(stream)), stream if self.keeps_state else None


class Encoder(nn.Module):
  """The projection of the embeddings, where their width differs, and the layers.

  Layers are stacked, or one set of parameters serves all of them (`shared_layer`).
  """

  config: EncoderConfig

  @nn.compact
  def __call__(
    self,
    embedded: jax.Array,
    inputs: Inputs,
    keys: jax.Array | None = None,
    every_layer: bool = False,
  ) -> jax.Array:
    """Computes hidden states.

    Args:
      embedded: of `Embeddings`, `[batch, length, embedding_size]`.
      inputs: int32 `[batch, length]` each.
      keys: of dropout, one threefry key per row; None for no dropout.
      every_layer: whether the states of all layers are returned.

    Returns:
      `[batch, length, hidden_size]`; of every layer `[layers + 1, batch, length, hidden_size]`: the
      embeddings in the width of the layers, and the output of each layer as `transformers` has
      them, with `pre_norm` the residual stream, but the normalized one of the last layer.
    """
    c = self.config
    x = embedded
    if c.embedding_size != c.hidden_size:
      # The original program leaves this layer to TensorFlow's default initializer.
      init = nn.initializers.glorot_uniform() if c.traits.glorot else None
      x = dense(c, c.hidden_size, ('embed', 'embed_out'), 'embeddings_project', init=init)(x)

    shared: dict[str, Any] = {'segment_ids': inputs.segment_ids, 'keys': keys}
    per_layer = {'index': jnp.arange(1, c.num_layers + 1)}  # 0 is the embeddings
    if c.traits.relative:
      shared['distances'] = self._distances(inputs.token_ids.shape[1])
    if c.traits.rotary:
      is_global = jnp.arange(c.num_layers) % c.global_every == 0
      per_layer['is_global'] = is_global
      shared['rotary'] = tuple(
        rotary_tables(inputs.positions, c.head_size, theta, c.for_cpu)
        for theta in (c.global_rope_theta, c.local_rope_theta)
      )
    # By name: the policies of JAX that keep all products miss those with a custom gradient.
    policy = (
      jax.checkpoint_policies.save_only_these_names(PRODUCT, RESIDUALS)
      if c.remat == 'dots'
      else None
    )
    # Between loops XLA has no common subexpressions to eliminate, and the barriers that prevent it
    # would only cost time.
    layer = (
      Layer
      if c.remat == 'none'
      else nn.remat(Layer, policy=policy, prevent_cse=not c.recomputed_in_loop)
    )
    layers = nn.scan(
      layer,
      **(
        {'variable_broadcast': 'params', 'split_rngs': {'params': False}}
        if c.traits.shared_layers
        else {'variable_axes': {'params': 0}, 'split_rngs': {'params': True}}
      ),
      in_axes=(nn.broadcast, 0),
      length=c.num_layers,
      unroll=min(c.scan_unroll, c.num_layers),
      # Traces a layer once more. Parameters of all layers require it. Initialization has it because
      # random keys of parameters depend on it: a seed gives the same weights in all versions.
      check_constancy_invariants=c.traits.shared_layers or self.is_initializing(),
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )
    stream = x.astype(c.residual_dtype)
    first = (stream, x.astype(c.dtype)) if c.traits.pre_norm else stream
    name = 'shared_layer' if c.traits.shared_layers else 'layers'
    carry, states = layers(c, every_layer, name=name)(first, shared, per_layer)
    last = (carry[1] if isinstance(carry, tuple) else carry).astype(c.dtype)
    if not every_layer:
      return last
    assert states is not None  # the layers keep their states
    return jnp.concatenate([stream[None], states[:-1], last[None].astype(stream.dtype)])

  def _distances(self, length: int) -> jax.Array:
    """The normalized table rows of all distances in a row, `[2 * length - 1, hidden]`."""
    c = self.config
    init = truncated_normal(c.initializer_range)
    shape = (2 * c.position_buckets, c.hidden_size)
    table = parameter(self, 'distances', init, shape, ('positions', 'embed'))
    table = layer_norm(c, 'distances_norm')(table)
    return jnp.take(table, bucket_rows(length, c.position_buckets, c.max_positions), axis=0)
