// Opens exports with transformers.js; prints what it computes as JSON.
//
// The libraries are in the folder of the first argument, as npm installs them.

import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const main = createRequire(path.join(process.argv[2], 'package.json')).resolve('@huggingface/transformers');
const { AutoModel, AutoTokenizer, env } = await import(pathToFileURL(main));
env.allowRemoteModels = false;
env.allowLocalModels = true;
env.useFSCache = false;

const request = JSON.parse(fs.readFileSync(0, 'utf8'));
const numbers = (tensor) => tensor.tolist().map((row) => row.map(Number));
const idsOf = (tokenizer, ...texts) => numbers(tokenizer(texts[0], { text_pair: texts[1] ?? null }).input_ids)[0];

async function outputs(folder) {
  env.localModelPath = path.dirname(folder);
  const name = path.basename(folder);
  const tokenizer = await AutoTokenizer.from_pretrained(name);
  const found = {
    ids: request.tricky.map((text) => idsOf(tokenizer, text)),
    pairs: request.pairs.map((pair) => idsOf(tokenizer, ...pair)),
  };
  if (fs.existsSync(path.join(folder, 'onnx', 'model.onnx'))) {
    const model = await AutoModel.from_pretrained(name, { dtype: 'fp32' });
    const inputs = tokenizer(request.texts, { padding: true });
    found.hidden = (await model(inputs)).last_hidden_state.tolist();
  }
  return found;
}

const answers = {};
for (const [name, folder] of Object.entries(request.exports)) {
  try {
    answers[name] = await outputs(path.join(folder, 'discriminator'));
  } catch (error) {
    answers[name] = { error: String(error) };
  }
}
console.log(JSON.stringify({ versions: `transformers.js ${env.version}`, answers }));
