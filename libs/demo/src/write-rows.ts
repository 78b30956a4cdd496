// Writes data/rows.jsonl and data/held-out.jsonl: `pnpm --filter @medmesh/demo write-rows`.

import { mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { demoHeldOutPath, demoRowsPath } from './paths.ts';
import { generateRows, rowsToJsonl } from './rows.ts';

const { train, heldOut } = generateRows();
await mkdir(path.dirname(demoRowsPath), { recursive: true });
await writeFile(demoRowsPath, rowsToJsonl(train));
await writeFile(demoHeldOutPath, rowsToJsonl(heldOut));
console.log(`${train.length} rows to train on, ${heldOut.length} held out`);
