"""Exports encoders to ONNX through torch.onnx, quantizes them, and runs both with onnxruntime."""

import pathlib

import answering
import onnxruntime
import torch
import transformers
from onnxruntime.quantization import QuantType, quantize_dynamic

OUTPUT = 'last_hidden_state'


class Hidden(torch.nn.Module):
  """An encoder with positional arguments and one output."""

  def __init__(self, encoder, names):
    super().__init__()
    self.encoder = encoder
    self.names = names

  def forward(self, *values):
    """Hidden states `[rows, length, hidden]`."""
    return self.encoder(**dict(zip(self.names, values, strict=True)))[OUTPUT]


def export(encoder, inputs, path):
  """Writes an encoder for rows of any number and length."""
  shape = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
  torch.onnx.export(
    Hidden(encoder, list(inputs)).eval(),
    tuple(inputs.values()),
    str(path),
    input_names=list(inputs),
    output_names=[OUTPUT],
    dynamic_shapes=(tuple(shape for _ in inputs),),
    dynamo=True,
    external_data=False,
    verbose=False,
  )


def hidden(path, inputs):
  """Hidden states by onnxruntime."""
  session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
  return session.run([OUTPUT], {name: value.numpy() for name, value in inputs.items()})[0].tolist()


def outputs(folder, request):
  """Answers for one export. The ONNX files are kept beside config.json, for transformers.js."""
  name = f'{folder}/discriminator'
  tokenizer = transformers.AutoTokenizer.from_pretrained(name)
  encoder = transformers.AutoModel.from_pretrained(name).eval()
  place = pathlib.Path(name, 'onnx')
  place.mkdir(exist_ok=True)
  other = tokenizer(request['others'], padding=True, return_tensors='pt')  # of another shape
  export(encoder, dict(other), place / 'model.onnx')
  quantize_dynamic(place / 'model.onnx', place / 'model_int8.onnx', weight_type=QuantType.QInt8)
  inputs = tokenizer(request['texts'], padding=True, return_tensors='pt')
  assert inputs['input_ids'].shape[0] != other['input_ids'].shape[0]
  assert inputs['input_ids'].shape[1] != other['input_ids'].shape[1]
  return {
    'hidden': hidden(place / 'model.onnx', inputs),
    'hidden_int8': hidden(place / 'model_int8.onnx', inputs),
    'bytes': [(place / file).stat().st_size for file in ('model.onnx', 'model_int8.onnx')],
  }


if __name__ == '__main__':
  torch.set_num_threads(1)
  transformers.logging.set_verbosity_error()
  answering.answer(
    outputs, f'onnxruntime {onnxruntime.__version__}, torch {torch.__version__}', 'onnxruntime'
  )
