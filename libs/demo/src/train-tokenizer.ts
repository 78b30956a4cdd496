// Writes base/tokenizer.json and base/tokenizer_config.json: `pnpm --filter @medmesh/demo train-tokenizer`.

import { mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { contextLength } from './base-recipe.ts';
import { demoTokenizerDir } from './paths.ts';
import { tokenizerConfig, tokenizerJson } from './tokenizer-files.ts';
import { trainMerges } from './train-merges.ts';

const merges = await trainMerges();
await mkdir(demoTokenizerDir, { recursive: true });
await writeFile(path.join(demoTokenizerDir, 'tokenizer.json'), `${JSON.stringify(tokenizerJson(merges))}\n`);
await writeFile(
  path.join(demoTokenizerDir, 'tokenizer_config.json'),
  `${JSON.stringify(tokenizerConfig(contextLength), null, 2)}\n`,
);
console.log(`tokenizer written to ${demoTokenizerDir}`);
