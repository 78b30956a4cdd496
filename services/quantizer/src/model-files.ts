import { Failure } from '@medmesh/errors';

/** Files of a model folder that medmesh keeps. Everything else is left where it is. */
const wanted = [
  /^config\.json$/,
  /^generation_config\.json$/,
  /^[\w.-]+\.safetensors$/,
  /^[\w.-]+\.safetensors\.index\.json$/,
  /^tokenizer\.json$/,
  /^tokenizer_config\.json$/,
  /^special_tokens_map\.json$/,
  /^chat_template\.(jinja|json)$/,
  /^(LICENSE|NOTICE)(\.(md|txt))?$/,
];

const pickle = /\.(bin|pt|pth|ckpt|pkl|pickle)$/;

/**
 * Chooses what to import from a folder's file names. Pickles are never opened: a folder that has its weights only as pickles is refused.
 * Subfolders (`original/`, `onnx/`) are other copies of the weights and are left out.
 */
export function chooseModelFiles<F extends { path: string }>(files: readonly F[], origin: string): F[] {
  const chosen = files.filter((file) => wanted.some((pattern) => pattern.test(file.path)));
  const has = (pattern: RegExp) => chosen.some((file) => pattern.test(file.path));
  const refuse = (what: string, todo: string) =>
    new Failure('invalid_argument', `${origin}: ${what}; ${todo}`, { reason: 'MODEL_FILES_INVALID', metadata: { files: String(files.length) } });
  if (files.length === 0) throw refuse('there are no files', 'check the address');
  if (!has(/^config\.json$/)) throw refuse('there is no config.json', 'name a Hugging Face model folder');
  if (!has(/\.safetensors$/)) {
    if (files.some((file) => pickle.test(file.path))) throw refuse('its weights are pickle files, which can run code when opened', 'convert them to safetensors');
    throw refuse('there are no *.safetensors files', 'name a Hugging Face model folder');
  }
  if (!has(/^tokenizer\.json$/)) throw refuse('there is no tokenizer.json', 'save the tokenizer in its fast form');
  return chosen;
}
