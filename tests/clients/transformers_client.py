"""Opens exports with transformers, 4.48 or 5: ids, hidden states, verdicts, words at masks."""

import json
import pathlib

import answering
import safetensors.torch
import torch
import transformers


def opened(auto, folder):
  """A model, and the tensors of it that the file lacks or has beyond it."""
  model, loaded = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True)
  return model.eval(), {name: sorted(map(str, found)) for name, found in loaded.items() if found}


def verdicts(folder, inputs):
  """The logits of a discriminator, whose head is in its class or in a file beside the encoder."""
  beside = pathlib.Path(folder, 'discriminator_head.safetensors')
  with open(f'{folder}/config.json') as file:
    (name,) = json.load(file)['architectures']
  if beside.exists():
    auto = transformers.AutoModelForTokenClassification
    model = auto.from_pretrained(folder, num_labels=1).eval()
    unknown = model.load_state_dict(safetensors.torch.load_file(beside), strict=False)
    assert not unknown.unexpected_keys, unknown
  elif 'For' in name:
    model, loaded = opened(name, folder)
    assert not loaded, loaded
  else:
    return {}  # the class has no head, which is in the encoder's file
  return {'verdicts': model(**inputs).logits.reshape(inputs['input_ids'].shape).tolist()}


def filled(folder, tokenizer, request):
  """The likeliest words at masks."""
  model, loaded = opened('AutoModelForMaskedLM', folder)
  assert not loaded, loaded
  fill = transformers.pipeline('fill-mask', model=model, tokenizer=tokenizer, top_k=3)
  texts = [text.replace('MASK', tokenizer.mask_token) for text in request['masked']]
  return [[[one['token'], one['score']] for one in fill(text)] for text in texts]


@torch.no_grad()
def outputs(folder, request):
  """Answers for one export."""
  discriminator = f'{folder}/discriminator'
  tokenizer = transformers.AutoTokenizer.from_pretrained(discriminator)
  inputs = tokenizer(request['texts'], padding=True, return_tensors='pt')
  encoder, loaded = opened('AutoModel', discriminator)
  return {
    'ids': tokenizer(request['tricky'])['input_ids'],
    'pairs': [tokenizer(*pair)['input_ids'] for pair in request['pairs']],
    'max_length': tokenizer.model_max_length,
    'hidden': encoder(**inputs).last_hidden_state.tolist(),
    'missing': loaded.get('missing_keys', []),
    **verdicts(discriminator, inputs),
    'filled': filled(f'{folder}/generator', tokenizer, request),
  }


if __name__ == '__main__':
  torch.set_num_threads(1)
  answering.answer(outputs, f'transformers {transformers.__version__}', 'transformers')
