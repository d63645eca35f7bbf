"""A corpus format of user code: letters in TEI, a format of XML for editions of texts."""

import pathlib
import xml.etree.ElementTree as ET

from electra_jax import registry
from electra_jax.config import default_config, with_arguments
from electra_jax.data.corpus.corpus_format import CorpusFormat
from electra_jax.errors import UserError


class TeiFormat(CorpusFormat):
  """One document per <text>, with its paragraphs on lines."""

  title = 'TEI'
  extensions = ('.tei',)
  magic = (b'<?xml',)
  options = {'notes': 'drop'}  # ;notes=keep: with the editor's notes
  version = 1  # raise it when `read` begins to give other documents

  def parse_options(self, location, given):
    options = super().parse_options(location, given)
    if options['notes'] not in ('keep', 'drop'):
      raise UserError(f'{location!r} has notes={options["notes"]}; expected keep or drop.')
    return options

  def read(self, path, options, reader):
    with reader.open(path) as stream:  # decompressed
      try:
        for _, element in ET.iterparse(stream):
          if element.tag == 'note' and options['notes'] == 'drop':
            element.clear()
          elif element.tag == 'text':
            yield '\n'.join(''.join(p.itertext()) for p in element.iter('p'))
            element.clear()
      except ET.ParseError as error:
        raise UserError(f'the corpus file {path!r} is not XML ({error}); repair it') from None


registry.CORPUS_FORMATS.register('tei', TeiFormat(), help='XML of the Text Encoding Initiative')


def get_config(arguments=''):
  """A run of a few seconds on a CPU."""
  c = default_config()
  c.name = 'tei'
  # The extension selects the format; another file would need ;format=tei.
  c.data.source = f'{pathlib.Path(__file__).with_name("letters.tei")};notes=keep'
  c.data.vocab_size = 300
  c.sequence_length = 32
  c.batch_size = 8
  c.steps = 30
  c.model.update(
    family='modern',
    hidden_size=32,
    embedding_size=32,
    num_layers=1,
    num_heads=2,
    intermediate_size=64,
    layer_norm_eps=1e-5,
    global_every=1,
    vocab_multiple=8,
  )
  c.generator.hidden_fraction = 0.5
  c.optimizer.update(learning_rate=1e-3, warmup_steps=2)
  c.micro_batches = 1
  c.log_every, c.save_every, c.eval_every, c.eval_rows, c.eval_batch_size = 3, 5, 10, 16, 8
  return with_arguments(c, arguments)
