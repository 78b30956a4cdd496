import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { gzipSync } from 'node:zlib';
import { dataset, lifecycle, model } from '@medmesh/proto';
import { keyOf } from '@medmesh/records';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { jsonl, reasoningRow } from './format-fixture.ts';
import { modelName, type RunningFormatter, startFormatterProcess } from './running-formatter.ts';

let formatter: RunningFormatter;
beforeAll(async () => {
  formatter = await startFormatterProcess();
});
afterAll(() => formatter?.stop());

const [ann, bob] = ['aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb'] as const;
const secret = 'Zacharias-Canary';
const about = (i: number, subject: string, text = `Answer ${i}.`) => ({
  ...reasoningRow(i),
  Response: text,
  who: subject,
});
const jsonRows = jsonl([about(0, ann), about(1, bob, secret), about(2, ann), about(3, bob, secret)]);
const csvRows = `Question,Complex_CoT,Response,who\n"a, ""b""?",t,plain,${ann}\nq,t,${secret},${bob}\n`;

const create = async (id: string): Promise<string> =>
  (await formatter.datasets.createDataset({ parent: 'projects/p', datasetId: id, dataset: {} })).name;
async function build(parent: string, sources: readonly object[], o: object = {}): Promise<dataset.DatasetVersion> {
  const spec = { sources: [...sources], model: modelName, maxTokens: 512, columns: { subject: 'Who' }, ...o };
  return formatter.finish(await formatter.datasets.createDatasetVersion({ parent, spec }), dataset.DatasetVersion);
}
const erase = async (subjectDigest: string): Promise<dataset.EraseSubjectResponse> =>
  formatter.finish(
    await formatter.datasets.eraseSubject({ parent: 'projects/p', subjectDigest }),
    dataset.EraseSubjectResponse,
  );
const textsOf = async (version: string): Promise<string[]> =>
  (
    await formatter.datasets.previewExamples({ parent: version.split('/versions/')[0]!, datasetVersion: version })
  ).examples.map((e) => e.text);

test('erasing a subject leaves versions without the rows, and lists all that was trained on them', async () => {
  const { catalog, store } = formatter;
  const upload = { uri: await formatter.upload('rows.jsonl.gz', gzipSync(jsonRows)), fileName: 'rows.jsonl.gz' };
  const path = join(formatter.importsDir, 'rows.csv');
  await writeFile(path, csvRows);
  const outside = { uri: pathToFileURL(path).href, fileName: 'rows.csv' };
  const [knees, hips] = [await create('knees'), await create('hips')];
  const older = await build(knees, [upload]);
  const newer = await build(knees, [upload, outside], { maxTokens: 600 });
  // Of the same upload, but not said to carry subjects: it is found by the upload.
  const sharing = await build(hips, [upload], { columns: undefined });
  const apart = { uri: await formatter.upload('apart.jsonl', jsonl([about(7, ann)])), fileName: 'apart.jsonl' };
  const untouched = await build(hips, [apart]);
  const bobs = { uri: await formatter.upload('bob.jsonl', jsonl([about(8, bob, secret)])), fileName: 'bob.jsonl' };
  const onlyBob = await build(await create('bob'), [bobs]);

  const job = 'projects/p/fineTuningJobs/j1';
  await catalog.jobs.create(
    keyOf(job),
    lifecycle.FineTuningJob.fromPartial({ name: job, trainDatasets: [{ datasetVersion: newer.name }] }),
  );
  for (const [id, versions, state] of [
    ['a1', [newer.name], lifecycle.Adapter_State.ACTIVE],
    ['a2', [untouched.name], lifecycle.Adapter_State.ACTIVE],
    ['a3', [older.name], lifecycle.Adapter_State.REVOKED],
    ['a4', [older.name], lifecycle.Adapter_State.UNSPECIFIED],
  ] as const) {
    const name = `projects/p/adapters/${id}`;
    await catalog.adapters.create(
      keyOf(name),
      lifecycle.Adapter.fromPartial({
        name,
        state,
        datasetVersions: [...versions],
        fineTuningJob: id === 'a1' ? job : '',
      }),
    );
  }
  const merged = 'projects/p/models/merged';
  await catalog.models.create(
    keyOf(merged),
    model.Model.fromPartial({
      name: merged,
      state: model.Model_State.READY,
      origin: { adapter: 'projects/p/adapters/a1' },
    }),
  );

  const erased = await erase(bob);
  expect(erased).toMatchObject({
    adapters: ['projects/p/adapters/a1', 'projects/p/adapters/a3'],
    fineTuningJobs: [job],
    models: [merged],
    remainingSources: [outside.uri],
    erasedRowCount: 4,
  });
  const replacementOf = (name: string): string => erased.versions.find((v) => v.name === name)!.replacement;
  expect(erased.versions.map((v) => v.name).sort()).toEqual(
    [older.name, newer.name, sharing.name, onlyBob.name].sort(),
  );
  expect(erased.versions.find((v) => v.name === onlyBob.name)).toMatchObject({
    replacement: '',
    errorMessage: 'none of the 1 rows can be used',
  });

  const second = await formatter.datasets.getDatasetVersion({ name: replacementOf(newer.name) });
  expect(second.stats).toMatchObject({ rowCount: 6, usedRowCount: 3 });
  expect(second.stats!.dropReasons).toMatchObject([
    { code: dataset.DropReasonCode.ERASED, rowCount: 3, sampleRowIndices: [1, 3, 5] },
  ]);
  expect(await textsOf(second.name)).toEqual([
    expect.stringContaining('Answer 0.'),
    expect.stringContaining('Answer 2.'),
    expect.stringContaining('a, "b"?'),
  ]);
  expect(await textsOf(replacementOf(sharing.name))).toHaveLength(2);
  expect((await formatter.datasets.getDataset({ name: knees })).latestVersion).toBe(second.name);
  expect((await formatter.datasets.getDataset({ name: 'projects/p/datasets/bob' })).latestVersion).toBe('');
  expect(await formatter.datasets.getDatasetVersion({ name: untouched.name })).toEqual(untouched);

  for (const version of [older, newer, sharing, onlyBob]) {
    await expect(formatter.datasets.getDatasetVersion({ name: version.name })).rejects.toMatchObject({
      code: 'not_found',
    });
    expect(await store.hasBlob(version.manifestDigest)).toBe(false);
  }
  expect([await store.hasBlob(upload.uri), await store.hasBlob(bobs.uri), await store.hasBlob(apart.uri)]).toEqual([
    false,
    false,
    true,
  ]);

  // What is gone cannot go again; the other subject still can.
  expect(await erase(bob)).toMatchObject({ erasedRowCount: 0, versions: [], remainingSources: [] });
  expect((await erase(ann)).erasedRowCount).toBe(4);
  for (const line of formatter.process.lines()) expect(line).not.toContain(secret);
});

test('what is no digest, or no project, is refused at the call', async () => {
  const call = (parent: string, subjectDigest: string) => formatter.datasets.eraseSubject({ parent, subjectDigest });
  for (const subject of ['', 'Jo Doe', '1970-01-01', 'x'.repeat(200)]) {
    await expect(call('projects/p', subject)).rejects.toMatchObject({ fields: [{ field: 'subject_digest' }] });
  }
  await expect(call('p', ann)).rejects.toMatchObject({ code: 'invalid_argument' });
});
