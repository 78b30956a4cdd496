import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Failure } from '@medmesh/errors';
import { loadTokenizer, resolveTemplate, type TextTokenizer } from '@medmesh/text';
import { writeTinyTokenizer } from '@medmesh/text/testing';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  formatFiles,
  jsonl,
  memorySink,
  reasoningRow,
  sourceOf,
  specOf,
  type TestFile,
  testLimits,
} from '../../test/format-fixture.ts';
import type { SourceFile } from '../rows/read-source.ts';
import { formatInThread } from './format-in-thread.ts';

let dir: string;
let tokenizer: TextTokenizer;
beforeAll(async () => {
  dir = await writeTinyTokenizer(await mkdtemp(join(tmpdir(), 'format-thread-test-')));
  tokenizer = await loadTokenizer(dir);
});
afterAll(() => rm(dir, { recursive: true, force: true }));

const rowsFile = (count: number): TestFile => ({
  name: 'rows.jsonl',
  bytes: jsonl(Array.from({ length: count }, (_, i) => reasoningRow(i))),
});

/** What `formatInThread` takes for these sources, and how often the tokenizer's folder was taken and released. */
function task(sources: readonly SourceFile[], spec: Parameters<typeof specOf>[1] = {}) {
  const folder = { opened: 0, released: 0 };
  const resolved = specOf([{ name: 'rows.jsonl' }], spec);
  const sink = memorySink();
  return {
    folder,
    sink,
    spec: resolved,
    deps: {
      sources,
      openTokenizer: async () => {
        folder.opened += 1;
        let held = 1;
        return {
          dir,
          release: () => {
            folder.released += held;
            held = 0;
          },
        };
      },
      template: resolveTemplate(resolved.template, tokenizer),
      limits: testLimits,
      sink,
    },
  };
}

const patience = (): AbortSignal => AbortSignal.timeout(60_000);

describe('formatting in a thread', () => {
  test('gives the shards, digests and statistics of the same pass in this thread', async () => {
    const files = [rowsFile(700), { name: 'more.jsonl', bytes: jsonl([reasoningRow(3), { Question: 'x' }]) }];
    const options = { maxTokens: 512, validationFraction: 0.2, dropInvalid: true };
    const evaluation = [
      { name: 'test.json', bytes: JSON.stringify(Array.from({ length: 99 }, (_, i) => reasoningRow(i))) },
    ];
    const { shards, ...expected } = await formatFiles(tokenizer, files, options, { evaluation });
    const { deps: bare, spec, sink, folder } = task(files.map(sourceOf), options);
    const deps = { ...bare, evaluation: evaluation.map(sourceOf) };
    const progress: number[] = [];
    const result = await formatInThread({ ...deps, onProgress: (p) => progress.push(p.rowCount) }, spec, patience());
    expect(result).toEqual(expected);
    expect(sink.shardsOf(result.files)).toEqual(shards);
    expect(progress.at(-1)).toBe(702);
    expect(folder).toEqual({ opened: 1, released: 1 });
  });

  test('fails as the pass itself does, with reason, rows and metadata', async () => {
    const { deps, spec, sink } = task([sourceOf({ name: 'rows.jsonl', bytes: jsonl([{ Question: 'x' }]) })]);
    const failure = await formatInThread(deps, spec, patience()).catch((e: unknown) => e);
    expect(failure).toBeInstanceOf(Failure);
    expect(failure).toMatchObject({ code: 'invalid_argument', reason: 'COLUMNS_UNKNOWN' });
    expect((failure as Failure).fields).toEqual([{ field: 'spec.columns', description: expect.any(String) }]);
    expect(sink.count()).toBe(0);
  });

  test('a store that fails while it is read is the failure, and the source is closed', async () => {
    let closed = 0;
    const source: SourceFile = {
      ...sourceOf(rowsFile(0)),
      async *open() {
        try {
          yield Buffer.from(jsonl([reasoningRow(0)]));
          throw new Failure('not_found', 'there is no blob', { reason: 'BLOB_NOT_FOUND', metadata: { digest: 'd' } });
        } finally {
          closed += 1;
        }
      },
    };
    const { deps, spec } = task([source]);
    await expect(formatInThread(deps, spec, patience())).rejects.toMatchObject({
      code: 'not_found',
      reason: 'BLOB_NOT_FOUND',
      metadata: { digest: 'd' },
    });
    expect(closed).toBe(1);
  });

  test('a shard that cannot be stored is the failure', async () => {
    const { deps, spec } = task([sourceOf(rowsFile(5))]);
    const sink = {
      putBlob: () => Promise.reject(new Failure('resource_exhausted', 'the store is full', { reason: 'STORE_FULL' })),
    };
    await expect(formatInThread({ ...deps, sink }, spec, patience())).rejects.toMatchObject({ reason: 'STORE_FULL' });
  });

  test("an abort in the middle ends it with the caller's reason and closes its sources", async () => {
    const stop = new AbortController();
    const reason = new Failure('cancelled', 'enough', { reason: 'OPERATION_CANCELLED' });
    const asked = Promise.withResolvers<void>();
    let closed = 0;
    const source: SourceFile = {
      ...sourceOf(rowsFile(0)),
      async *open(signal) {
        try {
          yield Buffer.from(jsonl([reasoningRow(0)]));
          asked.resolve();
          await new Promise((_, reject) =>
            signal.addEventListener('abort', () => reject(signal.reason as Error), { once: true }),
          );
        } finally {
          closed += 1;
        }
      },
    };
    const { deps, spec, folder } = task([source]);
    const formatted = formatInThread(deps, spec, stop.signal);
    void asked.promise.then(() => stop.abort(reason));
    await expect(formatted).rejects.toBe(reason);
    expect(closed).toBe(1);
    expect(folder).toEqual({ opened: 1, released: 1 });
  });

  test('a signal that has aborted before starts nothing', async () => {
    const { deps, spec, folder } = task([sourceOf(rowsFile(5))]);
    await expect(formatInThread(deps, spec, AbortSignal.abort(new Error('before')))).rejects.toThrow('before');
    expect(folder.opened).toBe(folder.released);
  });

  test('a row that does not fit its heap ends the build, and not the process', async () => {
    const message = '{"role":"user","content":""}';
    const source: SourceFile = {
      ...sourceOf(rowsFile(0)),
      async *open() {
        yield Buffer.from('{"messages":[');
        for (let i = 0; i < 512; i++) yield Buffer.from(`${message},`.repeat(1024));
        yield Buffer.from(`${message}]}\n`);
      },
    };
    const { deps, spec } = task([source]);
    await expect(formatInThread({ ...deps, heapMebibytes: 24 }, spec, patience())).rejects.toMatchObject({
      code: 'failed_precondition',
      reason: 'FORMAT_OUT_OF_MEMORY',
    });
  });
});
