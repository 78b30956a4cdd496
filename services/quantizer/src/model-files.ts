import { Failure } from '@medmesh/errors';

/** Files besides the weights that medmesh keeps. Everything else is left where it is. */
const companions = [
  /^config\.json$/,
  /^generation_config\.json$/,
  /^tokenizer\.json$/,
  /^tokenizer_config\.json$/,
  /^special_tokens_map\.json$/,
  /^chat_template\.(jinja|json)$/,
  /^(LICENSE|NOTICE)(\.(md|txt))?$/,
];

const index = /^model\.safetensors\.index\.json$/;
const shard = /^model-\d{5}-of-\d{5}\.safetensors$/;
const single = /^model\.safetensors$/;
const pickle = /\.(bin|pt|pth|ckpt|pkl|pickle)$/;

/** No published companion comes near it; the largest are tokenizer.json (33 MB) and the index of a model with 100,000 tensors. */
const maxCompanionBytes = 64 * 2 ** 20;

/**
 * Chooses what to import from a folder's files: with an index its shards, otherwise `model.safetensors`. Weights under other names (`consolidated…`,
 * `original/`, `onnx/`) are copies for other programs and are left out. Pickles are never opened: a folder that has its weights only as pickles is refused.
 * @throws Failure `invalid_argument` MODEL_FILES_INVALID.
 */
export function chooseModelFiles<F extends { path: string; sizeBytes: number }>(
  files: readonly F[],
  origin: string,
): F[] {
  const matching = (...patterns: RegExp[]) =>
    files.filter((file) => patterns.some((pattern) => pattern.test(file.path)));
  const refuse = (what: string, todo: string) =>
    new Failure('invalid_argument', `${origin}: ${what}; ${todo}`, {
      reason: 'MODEL_FILES_INVALID',
      metadata: { files: String(files.length) },
    });
  if (files.length === 0) throw refuse('there are no files', 'check the address');
  const sharded = matching(index).length > 0;
  const weights = sharded ? matching(shard) : matching(single);
  const kept = [...matching(...companions), ...(sharded ? matching(index) : [])];
  const has = (path: string) => kept.some((file) => file.path === path);

  if (!has('config.json')) throw refuse('there is no config.json', 'name a Hugging Face model folder');
  if (weights.length === 0) {
    if (matching(pickle).length > 0) {
      throw refuse('its weights are pickle files, which can run code when opened', 'convert them to safetensors');
    }
    throw refuse(
      sharded
        ? 'model.safetensors.index.json is there, but no model-…-of-….safetensors'
        : 'there is no model.safetensors',
      'name a Hugging Face model folder',
    );
  }
  if (!has('tokenizer.json')) throw refuse('there is no tokenizer.json', 'save the tokenizer in its fast form');
  const large = kept.find((file) => file.sizeBytes > maxCompanionBytes);
  if (large !== undefined)
    throw refuse(`${large.path} has ${large.sizeBytes} bytes`, `at most ${maxCompanionBytes} are read`);
  return [...kept, ...weights];
}
