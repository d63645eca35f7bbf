"""Opens exports with sentence-transformers: mean embeddings, and a saved folder opened again."""

import tempfile

import answering
import sentence_transformers
import torch
from sentence_transformers import SentenceTransformer


def outputs(folder, request):
  """Answers for one export."""
  model = SentenceTransformer(f'{folder}/discriminator', device='cpu')
  found = {
    'embeddings': model.encode(request['texts']).tolist(),
    'max_length': model.max_seq_length,
    'pooling': model[1].get_config_dict()['pooling_mode'],
  }
  with tempfile.TemporaryDirectory() as saved:
    model.save(saved)
    again = SentenceTransformer(saved, device='cpu')
    found['again'] = again.encode(request['texts']).tolist()
  return found


if __name__ == '__main__':
  torch.set_num_threads(1)
  version = f'sentence-transformers {sentence_transformers.__version__}'
  answering.answer(outputs, version, 'sentence_transformers')
