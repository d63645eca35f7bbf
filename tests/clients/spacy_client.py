"""Opens exports as the transformer of a spaCy pipeline, by spacy-transformers."""

import importlib.metadata

import answering
import spacy
import torch

MODEL = {
  '@architectures': 'spacy-transformers.TransformerModel.v3',
  'get_spans': {'@span_getters': 'spacy-transformers.doc_spans.v1'},
  'tokenizer_config': {'use_fast': True},
  'transformer_config': {},
  'mixed_precision': False,
  'grad_scaler_config': {},
}


def outputs(folder, request):
  """Answers for one export."""
  nlp = spacy.blank('en')
  nlp.add_pipe('transformer', config={'model': MODEL | {'name': f'{folder}/discriminator'}})
  nlp.initialize()
  docs = [nlp(text) for text in request['texts']]
  read = [doc._.trf_data for doc in docs]
  return {
    'texts': [found.wordpieces.input_ids[0].tolist() for found in read],
    'hidden': [found.model_output.last_hidden_state[0].tolist() for found in read],
    # How many tokens of the encoder each token of spaCy has.
    'aligned': [found.align.lengths.tolist() for found in read],
    'words': [[token.text for token in doc] for doc in docs],
  }


if __name__ == '__main__':
  torch.set_num_threads(1)
  plugin = importlib.metadata.version('spacy-transformers')
  answering.answer(outputs, f'spaCy {spacy.__version__}, spacy-transformers {plugin}', 'spacy')
