"""Trains LoRA on exports with peft: outputs before it, and the losses and changes of two steps."""

import answering
import peft
import torch
import transformers


def outputs(folder, request):
  """Answers for one export."""
  name = f'{folder}/discriminator'
  tokenizer = transformers.AutoTokenizer.from_pretrained(name)
  inputs = tokenizer(request['texts'], padding=True, return_tensors='pt')
  encoder = transformers.AutoModel.from_pretrained(name)
  modules = request['modules'][encoder.config.model_type]
  before = {name: value.detach().clone() for name, value in encoder.named_parameters()}
  config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=modules)
  adapted = peft.get_peft_model(encoder, config).eval()
  with torch.no_grad():
    hidden = adapted(**inputs).last_hidden_state
  trained = [(name, p) for name, p in adapted.named_parameters() if p.requires_grad]
  optimizer = torch.optim.SGD([p for _, p in trained], 1e-3)
  losses = []
  for _ in range(3):  # the loss before, and after each of two steps
    loss = adapted(**inputs).last_hidden_state.square().sum()
    losses.append(loss.item())
    optimizer.zero_grad()
    if len(losses) < 3:
      loss.backward()
      optimizer.step()
  frozen = {name.replace('.base_layer', ''): p for name, p in encoder.named_parameters()}
  return {
    'hidden': hidden.tolist(),
    'losses': losses,
    'trained': len(trained),
    'adapters_only': all('lora_' in name for name, _ in trained),
    'layers': encoder.config.num_hidden_layers,
    'encoder_unchanged': all(torch.equal(frozen[name], value) for name, value in before.items()),
  }


if __name__ == '__main__':
  torch.set_num_threads(1)
  transformers.logging.set_verbosity_error()
  answering.answer(outputs, f'peft {peft.__version__}', 'peft')
