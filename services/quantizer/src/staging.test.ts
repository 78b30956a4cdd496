import { mkdirSync, readdirSync, utimesSync } from 'node:fs';
import { join } from 'node:path';
import { Failure } from '@medmesh/errors';
import { tempDir } from '@medmesh/testkit';
import { expect, test } from 'vitest';
import { failureOf, isHandedOn, stagingFolder, sweepStaging } from './staging.ts';

test('the same work finds its folder again and other work gets another one', () => {
  const folder = stagingFolder('/staging', 'import', ['projects/p/models/m', 'hf://a/b', 'c1']);
  expect(stagingFolder('/staging', 'import', ['projects/p/models/m', 'hf://a/b', 'c1'])).toBe(folder);
  expect(stagingFolder('/staging', 'import', ['projects/p/models/m', 'hf://a/b', 'c2'])).not.toBe(folder);
  expect(folder).toMatch(/^\/staging\/import-[0-9a-f]{32}$/);
});

test('the sweep removes what nobody came back for in a week, and nothing else', async () => {
  const root = tempDir('staging');
  const old = new Date(Date.now() - 8 * 24 * 3600 * 1000);
  for (const name of ['import-old', 'import-new', 'derive-old', 'somebody-elses']) mkdirSync(join(root, name));
  for (const name of ['import-old', 'derive-old', 'somebody-elses']) utimesSync(join(root, name), old, old);
  await sweepStaging(root);
  expect(readdirSync(root).toSorted()).toEqual(['import-new', 'somebody-elses']);
});

test('work that was aborted failed for the reason of the abort, whatever the engine called it', () => {
  const abort = new AbortController();
  const stopping = new Failure('unavailable', 'stopping', { reason: 'WORKER_STOPPING' });
  expect(isHandedOn(failureOf(stopping, abort.signal))).toBe(true);
  const broken = Object.assign(new Error('not a safetensors file'), { name: 'EngineError', code: 'corrupt' });
  expect(failureOf(broken, abort.signal)).toMatchObject({ code: 'data_loss', message: 'not a safetensors file' });
  abort.abort(stopping);
  expect(failureOf(broken, abort.signal)).toBe(stopping);
});
