import { expect, test } from 'vitest';
import { chooseModelFiles } from './model-files.ts';

const listing = (...paths: string[]) => paths.map((path) => ({ path, sizeBytes: 10 }));
const chosen = (...paths: string[]) => chooseModelFiles(listing(...paths), 'hf://a/b').map((file) => file.path);
const small = ['config.json', 'tokenizer.json'];

test('a model folder is taken without what belongs to other programs', () => {
  const others = [
    'README.md',
    'pytorch_model.bin',
    'consolidated.safetensors',
    'onnx/model.onnx',
    'original/model.safetensors',
    'vocab.json',
  ];
  const kept = [
    ...small,
    'generation_config.json',
    'tokenizer_config.json',
    'chat_template.jinja',
    'LICENSE',
    'model.safetensors',
  ];
  expect(chosen(...others, ...kept).toSorted()).toEqual(kept.toSorted());
});

test('with an index the shards are taken and a second copy in one file is left out', () => {
  const shards = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'];
  expect(chosen(...small, 'model.safetensors.index.json', ...shards, 'model.safetensors')).toEqual([
    ...small,
    'model.safetensors.index.json',
    ...shards,
  ]);
});

test('weights that are only pickles are refused with the reason', () => {
  expect(() => chosen(...small, 'pytorch_model.bin')).toThrowError(
    /pickle files, which can run code.*convert them to safetensors/,
  );
});

test.each([
  [[], /there are no files/],
  [['tokenizer.json', 'model.safetensors'], /no config\.json/],
  [['config.json', 'model.safetensors'], /no tokenizer\.json/],
  [['config.json', 'tokenizer.json'], /no model\.safetensors/],
  [
    ['config.json', 'tokenizer.json', 'model.safetensors.index.json', 'model.safetensors'],
    /index\.json is there, but no model-/,
  ],
])('a folder with %j is refused by what it lacks', (paths, message) => {
  expect(() => chosen(...paths)).toThrowError(message);
});

test('a tokenizer of absurd size is refused before it is fetched', () => {
  const files = [...listing('config.json', 'model.safetensors'), { path: 'tokenizer.json', sizeBytes: 2 ** 40 }];
  expect(() => chooseModelFiles(files, 'hf://a/b')).toThrowError(/tokenizer\.json has 1099511627776 bytes/);
});
