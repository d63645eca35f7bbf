"""What differs between the architectures of `transformers`: config fields, tensor names, heads.

One module per architecture holds an `Architecture`; interop/huggingface.py lists them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from electra_jax.interop.hf_config import ConfigFields
from electra_jax.interop.weights import Head
from electra_jax.model.config import EncoderConfig

# A part of a tensor: the path of one of our parameters ('embeddings', 'encoder' or 'head' first)
# and, where the parameters of all layers are stacked, the layer.
Part = tuple[str, int | None]
# The parts of each tensor, concatenated along its first axis. Kernels are [out, in] in
# `transformers` and [in, out] here.
TensorTable = dict[str, tuple[Part, ...]]


class Obstacle(NamedTuple):
  """Why an architecture has no model of a config.

  Attributes:
    reason: in a few words.
    field: of config.model that is the reason.
    value: of that field with which the model exists.
  """

  reason: str
  field: str
  value: Any


def nothing_to_add(
  fields: ConfigFields, config: EncoderConfig, kind: str, tensors: dict[str, np.ndarray]
) -> list[str]:
  """`complete` of an architecture whose files hold every tensor."""
  return []


@dataclasses.dataclass(frozen=True)
class Architecture:
  """One architecture of `transformers`.

  The kinds of models are 'encoder' (without a head), 'discriminator', 'generator' and the kinds of
  fine-tuned heads: 'classification' (multi-label and regression included), 'choice', 'tagging' and
  'span'.

  Attributes:
    model_type: the field of config.json.
    family: the EncoderConfig.family that is written in this architecture.
    prefix: of the encoder's tensors in a file that also has a head.
    encoder_names: beginnings of the encoder's tensor names, after the prefix.
    classes: name of the class by kind.
    read_config: config.json to EncoderConfig; raises UserError for an unsupported value.
    write_config: the inverse: (config, ids of special tokens such as pad_id) to fields.
    tensors: (config, kind) to the names, without the prefix, and parts of all tensors.
    heads: names of tensors, without the prefix, to the kinds that have such heads; none for an
      encoder without a head.
    copies: tensors of a generator that repeat another one: name to name of the other. Older
      releases wrote them; their bits must agree.
    buffers: endings of the names of tensors that are not parameters.
    renamed: parts of tensor names in older releases, and today's.
    poolings: that a classifier may have; with several, the field `classifier_pooling` chooses.
    head_beside: whether a discriminator, for which `transformers` has no class, is written as an
      encoder without a head, and its head into a file beside it. Its tensors have the names of a
      token classifier with one label, which computes the same.
    complete: adds tensors that a file may leave out; returns notes for the user.
    unsupported: why a config cannot be written; None where it can.
    convert_head: parameters of a head of style 'published' in the style of `transformers`; None
      if there are none that give the same logits.
    other_classes: further classes that are read: name to kind.
    repeated: those of `copies` that are written, too, because `transformers` before 5 initializes
      them, and with them what they repeat, to zero.
    finish: changes the tensors of a file before it is written: (tensors by name, ids of special
      tokens).
  """

  model_type: str
  family: str
  prefix: str
  encoder_names: tuple[str, ...]
  classes: Mapping[str, str]
  read_config: Callable[[ConfigFields], EncoderConfig]
  write_config: Callable[[EncoderConfig, Mapping[str, int]], dict[str, Any]]
  tensors: Callable[[EncoderConfig, str], TensorTable]
  heads: Callable[[set[str]], set[str]]
  copies: Mapping[str, str]
  buffers: tuple[str, ...]
  renamed: Mapping[str, str]
  poolings: tuple[str, ...]
  head_beside: bool
  complete: Callable[[ConfigFields, EncoderConfig, str, dict[str, np.ndarray]], list[str]]
  unsupported: Callable[[EncoderConfig], Obstacle | None]
  convert_head: Callable[[Head], dict[str, Any] | None]
  other_classes: Mapping[str, str] = dataclasses.field(default_factory=dict)
  repeated: tuple[str, ...] = ()
  finish: Callable[[dict[str, np.ndarray], Mapping[str, int]], None] = lambda tensors, ids: None

  def full_name(self, name: str, kind: str) -> str:
    """Returns a tensor's name in a file of a kind of model."""
    has_prefix = kind != 'encoder' and name.startswith(self.encoder_names)
    return self.prefix + name if has_prefix else name

  def head_names(self, config: EncoderConfig) -> set[str]:
    """Returns the names of the tensors of a discriminator's head, which have no prefix."""
    both = self.tensors(config, 'discriminator')
    return both.keys() - self.tensors(config, 'encoder').keys()

  def short_name(self, name: str) -> str:
    """Returns today's name of a tensor of a file, without the prefix."""
    name = name.removeprefix(self.prefix)
    for old, new in self.renamed.items():
      name = name.replace(old, new)
    return name
