import { createHash } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { zstdCompressSync } from 'node:zlib';
import { parseDatasetMetadata } from '@medmesh/catalog';
import { Failure } from '@medmesh/errors';
import { dataset } from '@medmesh/proto';
import { type OtlpCollector, startOtlp } from '@medmesh/testkit';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { decodeShard } from '../src/pipeline/shard.ts';
import { jsonl, reasoningRow } from './format-fixture.ts';
import { modelName, type RunningFormatter, startFormatterProcess } from './running-formatter.ts';

let formatter: RunningFormatter;
let otlp: OtlpCollector;
beforeAll(async () => {
  otlp = await startOtlp();
  formatter = await startFormatterProcess({ OTEL_EXPORTER_OTLP_ENDPOINT: otlp.endpoint, MAX_UPLOAD_BYTES: '1000000' });
});
afterAll(async () => {
  await formatter.stop();
  await otlp.stop();
});

const parent = 'projects/p/datasets/knees';
const rows = (n: number): string => jsonl(Array.from({ length: n }, (_, i) => reasoningRow(i)));
const specOf = (uri: string, o: object = {}) => ({
  sources: [{ uri, fileName: 'rows.jsonl' }],
  model: modelName,
  maxTokens: 512,
  ...o,
});
const failureOf = async (promise: Promise<unknown>): Promise<Failure> => {
  const e = await promise.then(
    () => undefined,
    (error: unknown) => error,
  );
  expect(e).toBeInstanceOf(Failure);
  return e as Failure;
};

describe('datasets', () => {
  test('are created once for a request_id, listed, and told apart by name', async () => {
    const requestId = crypto.randomUUID();
    const request = {
      parent: 'projects/p',
      datasetId: 'knees',
      dataset: { displayName: 'Knees', labels: { team: 'ortho' } },
      requestId,
    };
    const created = await formatter.datasets.createDataset(request);
    expect(created).toMatchObject({ name: parent, displayName: 'Knees', labels: { team: 'ortho' }, latestVersion: '' });
    expect(await formatter.datasets.createDataset(request)).toEqual(created);
    const other = { ...request, dataset: { displayName: 'Other' } };
    expect(await failureOf(formatter.datasets.createDataset(other))).toMatchObject({
      code: 'invalid_argument',
      reason: 'REQUEST_ID_REUSED',
    });
    expect(await failureOf(formatter.datasets.createDataset({ ...request, requestId: '' }))).toMatchObject({
      code: 'already_exists',
    });
    await formatter.datasets.createDataset({ parent: 'projects/p', datasetId: 'hips' });
    const { datasets } = await formatter.datasets.listDatasets({ parent: 'projects/p' });
    expect(datasets.map((d) => d.name)).toEqual(['projects/p/datasets/hips', parent]);
    expect(await failureOf(formatter.datasets.getDataset({ name: 'projects/p/datasets/none' }))).toMatchObject({
      code: 'not_found',
    });
    expect(
      await failureOf(formatter.datasets.createDataset({ parent: 'projects/p', datasetId: 'No Such' })),
    ).toMatchObject({ code: 'invalid_argument' });
  });

  test('are deleted with their versions, unless somebody changed them', async () => {
    const name = 'projects/p/datasets/passing';
    const { etag } = await formatter.datasets.createDataset({ parent: 'projects/p', datasetId: 'passing' });
    const uri = await formatter.upload('rows.jsonl', rows(3));
    const version = await formatter.finish(
      await formatter.datasets.createDatasetVersion({ parent: name, spec: specOf(uri) }),
      dataset.DatasetVersion,
    );
    expect(await failureOf(formatter.datasets.deleteDataset({ name, etag }))).toMatchObject({
      reason: 'ETAG_MISMATCH',
    });
    await formatter.datasets.deleteDataset({ name });
    expect(await failureOf(formatter.datasets.getDatasetVersion({ name: version.name }))).toMatchObject({
      code: 'not_found',
    });
    expect(await failureOf(formatter.datasets.getDataset({ name }))).toMatchObject({ code: 'not_found' });
  });
});

describe('an upload', () => {
  type Message = Parameters<typeof formatter.datasets.uploadDatasetFile>[0] extends AsyncIterable<infer T> ? T : never;
  const send = (header: object, chunks: readonly string[]) => {
    async function* messages(): AsyncGenerator<Message> {
      yield {
        data: {
          $case: 'header',
          value: { parent: 'projects/p', fileName: 'rows.jsonl', sizeBytes: 0, digest: '', ...header },
        },
      };
      for (const chunk of chunks) yield { data: { $case: 'chunk', value: Buffer.from(chunk) } };
    }
    return formatter.datasets.uploadDatasetFile(messages());
  };
  const digest = `sha256:${createHash('sha256').update('abcdef').digest('hex')}`;

  test('is stored under its digest', async () => {
    expect(await send({ sizeBytes: 6, digest }, ['abc', 'def'])).toEqual({ digest, sizeBytes: 6 });
    expect(await formatter.store.hasBlob(digest)).toBe(true);
  });

  test.each([
    ['another size', { sizeBytes: 7 }, ['xyz', 'def'], 'SIZE_MISMATCH'],
    ['more bytes than announced', { sizeBytes: 4 }, ['xyz', 'deg'], 'SIZE_MISMATCH'],
    ['another digest', { digest: `sha256:${'0'.repeat(64)}` }, ['uvw'], 'DIGEST_MISMATCH'],
  ] as const)('with %s is refused and leaves nothing', async (_, header, chunks, reason) => {
    expect(await failureOf(send(header, chunks))).toMatchObject({ code: 'data_loss', reason });
    const stored = `sha256:${createHash('sha256').update(chunks.join('')).digest('hex')}`;
    expect(await formatter.store.hasBlob(stored)).toBe(false);
  });

  test('beyond the limit, without a header or with a path for a name is refused', async () => {
    expect(await failureOf(send({}, ['x'.repeat(600_000), 'x'.repeat(600_000)]))).toMatchObject({
      message: expect.stringMatching(/more than 1000000 bytes/),
    });
    expect(await failureOf(send({ fileName: '../rows.jsonl' }, []))).toMatchObject({
      message: expect.stringMatching(/plain file name/),
    });
    async function* noHeader(): AsyncGenerator<Message> {
      yield { data: { $case: 'chunk', value: Buffer.from('x') } };
    }
    expect(await failureOf(formatter.datasets.uploadDatasetFile(noHeader()))).toMatchObject({
      message: expect.stringMatching(/must be the header/),
    });
  });

  test('by URL needs an S3 store', async () => {
    expect(
      await failureOf(formatter.datasets.createUploadUrl({ parent: 'projects/p', fileName: 'a.jsonl' })),
    ).toMatchObject({ code: 'failed_precondition' });
  });
});

describe('a version', () => {
  test('is built from an upload, with shards, numbers and a name that follows from its content', async () => {
    const uri = await formatter.upload('rows.jsonl', rows(200));
    const spec = specOf(uri, { validationFraction: 0.2 });
    const build = async () =>
      formatter.finish(await formatter.datasets.createDatasetVersion({ parent, spec }), dataset.DatasetVersion);
    const version = await build();
    expect(version).toMatchObject({ state: dataset.DatasetVersion_State.READY, errorMessage: '' });
    expect(version.name).toBe(`${parent}/versions/v-${version.manifestDigest.slice(7, 23)}`);
    expect(version.spec).toMatchObject({ splitSeed: 3407, lossMask: dataset.LossMask.COMPLETION });
    expect(version.stats).toMatchObject({ rowCount: 200, usedRowCount: 200 });

    const manifest = await formatter.store.getManifest(version.manifestDigest);
    const metadata = parseDatasetMetadata(manifest.metadata);
    expect(metadata).toMatchObject({
      inputDigests: [uri],
      tokenizerDigest: version.tokenizerDigest,
      templateDigest: version.templateDigest,
    });
    expect(metadata.train.rowCount + metadata.validation.rowCount).toBe(200);
    const pieces: Uint8Array[] = [];
    for await (const piece of formatter.store.readBlob(
      manifest.files.find((f) => f.path === metadata.train.paths[0])!.digest,
    ))
      pieces.push(piece);
    expect(decodeShard(Buffer.concat(pieces)).rowIndex.length).toBe(metadata.train.rowCount);

    expect((await build()).name).toBe(version.name);
    expect(await formatter.datasets.getDatasetVersion({ name: version.name })).toEqual(version);
    expect((await formatter.datasets.getDataset({ name: parent })).latestVersion).toBe(version.name);
    const other = await formatter.finish(
      await formatter.datasets.createDatasetVersion({ parent, spec: { ...spec, splitSeed: 1 } }),
      dataset.DatasetVersion,
    );
    expect(other.name).not.toBe(version.name);

    const first = await formatter.datasets.listDatasetVersions({ parent, pageSize: 1 });
    expect(first.datasetVersions.map((v) => v.name)).toEqual([other.name]);
    const second = await formatter.datasets.listDatasetVersions({
      parent,
      pageSize: 1,
      pageToken: first.nextPageToken,
    });
    expect(second.datasetVersions.map((v) => v.name)).toEqual([version.name]);
    expect(second.nextPageToken).toBe('');
    expect(await failureOf(formatter.datasets.listDatasetVersions({ parent, pageToken: 'bogus' }))).toMatchObject({
      reason: 'PAGE_TOKEN_MISMATCH',
    });
  });

  test('is built from compressed files in a folder that may be read', async () => {
    const path = join(formatter.importsDir, 'rows.jsonl.zst');
    await writeFile(path, zstdCompressSync(rows(20)));
    const spec = { ...specOf(''), sources: [{ uri: `file://${path}` }] };
    const version = await formatter.finish(
      await formatter.datasets.createDatasetVersion({ parent, spec }),
      dataset.DatasetVersion,
    );
    expect(version.stats).toMatchObject({ rowCount: 20, usedRowCount: 20 });
  });

  test('of a repeated request_id is one operation', async () => {
    const uri = await formatter.upload('rows.jsonl', rows(4));
    const request = { parent, spec: specOf(uri), requestId: crypto.randomUUID() };
    const first = await formatter.datasets.createDatasetVersion(request);
    expect((await formatter.datasets.createDatasetVersion(request)).name).toBe(first.name);
    const other = { ...request, spec: specOf(uri, { maxTokens: 300 }) };
    expect(await failureOf(formatter.datasets.createDatasetVersion(other))).toMatchObject({
      reason: 'REQUEST_ID_REUSED',
    });
    await formatter.finish(first, dataset.DatasetVersion);
  });

  test.each([
    [
      'an unknown slot',
      {
        template: {
          template: { $case: 'custom' as const, value: { prompt: '{{nobody}}', completion: '{{response}}' } },
        },
      },
      /unknown slot \{\{nobody\}\}/,
    ],
    ['an unknown model', { model: 'projects/p/models/none' }, /projects\/p\/models\/none does not exist/],
    ['more tokens than the model holds', { maxTokens: 8192 }, /the model's context holds 4096/],
    [
      'a file that was never uploaded',
      { sources: [{ uri: `sha256:${'1'.repeat(64)}`, fileName: 'a.jsonl' }] },
      /no file of this digest was uploaded/,
    ],
    [
      'a file outside the allowed folders',
      { sources: [{ uri: 'file:///etc/passwd', fileName: 'a.csv' }] },
      /is outside the folders this process may use/,
    ],
    ['no sources', { sources: [] }, /spec.sources has 0 files/],
  ])('with %s is refused before anything is queued', async (_, change, message) => {
    const uri = await formatter.upload('rows.jsonl', rows(1));
    expect(
      await failureOf(formatter.datasets.createDatasetVersion({ parent, spec: { ...specOf(uri), ...change } })),
    ).toMatchObject({ message: expect.stringMatching(message) });
  });

  test('with rows that cannot be used fails and names them; validation counts them', async () => {
    const uri = await formatter.upload('rows.jsonl', `${rows(2)}{"Question":"only"}\nno json\n`);
    const operation = await formatter.datasets.createDatasetVersion({ parent, spec: specOf(uri) });
    const done = await formatter.operations.wait(
      operation.name,
      { seconds: 60, nanos: 0 },
      AbortSignal.timeout(60_000),
    );
    expect(done.result).toMatchObject({
      $case: 'error',
      value: {
        code: 3,
        message: expect.stringContaining(
          '2 of 4 rows cannot be used: MISSING_FIELD in 1 (row 2); BAD_JSON in 1 (row 3)',
        ),
      },
    });
    const stats = await formatter.finish(
      await formatter.datasets.validateDatasetVersion({ parent, spec: specOf(uri) }),
      dataset.DataStats,
    );
    expect(stats).toMatchObject({ rowCount: 4, usedRowCount: 2, droppedRowCount: 2 });
  });
});

describe('a transformation', () => {
  test('derives a version under the same spec with its changes, and leaves the first as it is', async () => {
    const named = jsonl([
      reasoningRow(0),
      { ...reasoningRow(1), Response: 'MRN: 00123456' },
      reasoningRow(2),
      reasoningRow(3),
    ]);
    const uri = await formatter.upload('rows.jsonl', named);
    const build = await formatter.datasets.createDatasetVersion({ parent, spec: specOf(uri) });
    const first = await formatter.finish(build, dataset.DatasetVersion);
    const requestId = crypto.randomUUID();
    const request = { datasetVersion: first.name, dropIdentifiers: true, validationFraction: 0.5, requestId };
    const started = await formatter.datasets.transformDataset(request);
    expect((await formatter.datasets.transformDataset(request)).name).toBe(started.name);
    const second = await formatter.finish(started, dataset.DatasetVersion);
    expect(second.name).not.toBe(first.name);
    expect(second.spec).toEqual({ ...first.spec, dropIdentifiers: true, validationFraction: 0.5 });
    expect(second.stats).toMatchObject({ rowCount: 4, usedRowCount: 3 });
    expect(second.stats!.dropReasons).toMatchObject([
      { code: dataset.DropReasonCode.IDENTIFIER_FOUND, sampleRowIndices: [1] },
    ]);
    expect(await formatter.datasets.getDatasetVersion({ name: first.name })).toEqual(first);

    const evaluation = { uri: await formatter.upload('test.txt', named), fileName: 'test.jsonl' };
    const third = formatter.datasets.transformDataset({ datasetVersion: second.name, evaluationSources: [evaluation] });
    expect((await formatter.finish(await third, dataset.DatasetVersion)).spec).toMatchObject({
      evaluationSources: [{ uri: evaluation.uri }],
      dropIdentifiers: true,
    });
  });

  test('of nothing, to something impossible, or of what is not there is refused at the call', async () => {
    const { datasetVersions } = await formatter.datasets.listDatasetVersions({ parent });
    const datasetVersion = datasetVersions.at(-1)!.name;
    const transform = (o: object) => failureOf(formatter.datasets.transformDataset({ datasetVersion, ...o }));
    expect(await transform({})).toMatchObject({ fields: [{ field: 'dataset_version' }] });
    expect(await transform({ nearDuplicateSimilarity: 0.1 })).toMatchObject({
      fields: [{ field: 'spec.near_duplicate_similarity' }],
    });
    expect(
      await transform({ evaluationSources: [{ uri: `sha256:${'0'.repeat(64)}`, fileName: 'a.csv' }] }),
    ).toMatchObject({
      fields: [{ field: 'spec.evaluation_sources[0].uri' }],
    });
    expect(await transform({ datasetVersion: `${parent}/versions/v-none`, dropIdentifiers: true })).toMatchObject({
      code: 'not_found',
    });
  });
});

describe('a preview', () => {
  test('shows text, tokens and mask side by side, and why a row would be left out', async () => {
    const uri = await formatter.upload('rows.jsonl', `${rows(2)}oops\n${rows(1)}`);
    const { examples } = await formatter.datasets.previewExamples({ parent, spec: specOf(uri), rowIndices: [3, 1, 2] });
    expect(examples.map((e) => [e.rowIndex, e.dropReason])).toEqual([
      [3, dataset.DropReasonCode.DUPLICATE],
      [1, dataset.DropReasonCode.UNSPECIFIED],
      [2, dataset.DropReasonCode.BAD_JSON],
    ]);
    const [, shown] = examples;
    expect(shown!.tokens.map((t) => t.text).join('')).toBe(shown!.text);
    expect(
      shown!.tokens
        .filter((t) => t.trained)
        .map((t) => t.text)
        .join(''),
    ).toBe('Thought 1.\n</think>\nAnswer 1.<|im_end|>');
    const kinds = [...new Set(shown!.tokens.map((t) => t.span))];
    expect(kinds).toEqual([
      dataset.SpanKind.PROMPT,
      dataset.SpanKind.REASONING,
      dataset.SpanKind.MARKUP,
      dataset.SpanKind.RESPONSE,
      dataset.SpanKind.EOS,
    ]);
    expect(
      await failureOf(formatter.datasets.previewExamples({ parent, spec: specOf(uri), rowIndices: [99] })),
    ).toMatchObject({ code: 'not_found', message: 'no row 99: the sources have 4 rows' });
  });

  test('of a built version comes from its shards and equals that of its spec', async () => {
    const uri = await formatter.upload('rows.jsonl', rows(30));
    const spec = specOf(uri, { validationFraction: 0.3 });
    const version = await formatter.finish(
      await formatter.datasets.createDatasetVersion({ parent, spec }),
      dataset.DatasetVersion,
    );
    const rowIndices = [29, 0, 7];
    const stored = await formatter.datasets.previewExamples({ parent, datasetVersion: version.name, rowIndices });
    const planned = await formatter.datasets.previewExamples({ parent, spec, rowIndices });
    const essence = (r: dataset.PreviewExamplesResponse) =>
      r.examples.map((e) => [e.rowIndex, e.text, e.tokens.map((t) => [t.id, t.trained])]);
    expect(essence(stored)).toEqual(essence(planned));
    expect((await formatter.datasets.previewExamples({ parent, datasetVersion: version.name })).examples.length).toBe(
      3,
    );
  });
});

describe('tokenizers', () => {
  test('turn text into tokens and back', async () => {
    const texts = ['the knee', '<|im_end|>'];
    const { sequences } = await formatter.tokenizers.tokenize({ model: modelName, texts });
    expect(sequences.map((s) => s.pieces.join(''))).toEqual(texts);
    expect(sequences[1]!.ids.length).toBeGreaterThan(1);
    const parsed = await formatter.tokenizers.tokenize({
      model: modelName,
      texts: ['<|im_end|>'],
      parseSpecialTokens: true,
    });
    expect(parsed.sequences[0]!.ids).toEqual([268]);
    expect(await formatter.tokenizers.detokenize({ model: modelName, ids: sequences[0]!.ids })).toEqual({
      text: 'the knee',
    });
    expect(await formatter.tokenizers.getTokenizer({ model: modelName })).toMatchObject({
      vocabularySize: 271,
      eosTokenId: 268,
      bosTokenId: undefined,
      hasChatTemplate: true,
    });
    expect(await failureOf(formatter.tokenizers.tokenize({ model: modelName, texts: [] }))).toMatchObject({
      code: 'invalid_argument',
    });
    expect(await failureOf(formatter.tokenizers.detokenize({ model: modelName, ids: [9999] }))).toMatchObject({
      message: expect.stringMatching(/outside the vocabulary/),
    });
  });

  test('render templates, spans and all', async () => {
    const rendered = await formatter.tokenizers.renderTemplate({
      model: modelName,
      slots: { question: 'Why?', reasoning: 'So.', response: 'Yes.' },
    });
    expect(rendered.startsInsideThink).toBe(true);
    expect(rendered.spans.map((s) => [s.kind, rendered.text.slice(s.start, s.end)]).slice(1)).toEqual([
      ['reasoning', 'So.'],
      ['markup', '\n</think>\n'],
      ['response', 'Yes.'],
      ['eos', '<|im_end|>'],
    ]);
    const chat = { template: { $case: 'chat' as const, value: { system: '' } } };
    const prompt = await formatter.tokenizers.renderTemplate({
      model: modelName,
      template: chat,
      messages: [{ role: 'user', content: 'Why?' }],
      promptOnly: true,
    });
    expect(prompt).toMatchObject({
      text: '<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n',
      startsInsideThink: false,
    });
    expect(
      await failureOf(formatter.tokenizers.renderTemplate({ model: modelName, slots: { nobody: 'x' } })),
    ).toMatchObject({ message: expect.stringMatching(/there is no slot nobody/) });
  });
});

// Last: it stops the broker to read all that it keeps.
describe('patient text', () => {
  test('reaches no log, span, record, event or error', async () => {
    const canary = 'Zacharias-Canary';
    const bad = [
      `{"Question":"${canary}`,
      JSON.stringify({ [canary]: canary }),
      JSON.stringify({ ...reasoningRow(0), Response: [canary] }),
    ].join('\n');
    const good = jsonl([{ Question: canary, Complex_CoT: canary, Response: canary }]);
    const uri = await formatter.upload('rows.jsonl', `${good}${bad}\n`);
    const failed = await formatter.datasets.createDatasetVersion({ parent, spec: specOf(uri) });
    await formatter.operations.wait(failed.name, { seconds: 60, nanos: 0 }, AbortSignal.timeout(60_000));
    const built = await formatter.datasets.createDatasetVersion({ parent, spec: specOf(uri, { dropInvalid: true }) });
    const version = await formatter.finish(built, dataset.DatasetVersion);
    expect(version.stats).toMatchObject({ usedRowCount: 1, droppedRowCount: 3 });
    const { examples } = await formatter.datasets.previewExamples({ parent, datasetVersion: version.name });
    expect(examples[0]!.text).toContain(canary);
    await formatter.tokenizers.tokenize({ model: modelName, texts: [canary] });
    await formatter.tokenizers.renderTemplate({ model: modelName, slots: { question: canary }, promptOnly: true });
    await failureOf(
      formatter.tokenizers.renderTemplate({
        model: modelName,
        slots: { question: canary, response: canary },
        template: { template: { $case: 'builtin', value: 'none' } },
      }),
    );

    const spans = await otlp.waitForSpans((all) => all.some((s) => s.name.includes('RenderTemplate')), 20_000);
    expect(spans.some((s) => s.name === 'format rows')).toBe(true);
    const everything = {
      logs: formatter.process.lines().join('\n'),
      spans: JSON.stringify(spans, (_, v: unknown) => (typeof v === 'bigint' ? String(v) : v)),
      records: await formatter.brokerContent(),
    };
    expect(everything.logs).toContain('dataset version ready');
    expect(everything.records).toContain(version.name.split('/').at(-1));
    for (const text of Object.values(everything)) expect(text).not.toContain(canary);
  });
});
