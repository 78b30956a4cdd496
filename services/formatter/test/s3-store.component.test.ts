import { dataset } from '@medmesh/proto';
import { type S3Server, s3Missing, startS3 } from '@medmesh/testkit';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { jsonl, reasoningRow } from './format-fixture.ts';
import { modelName, type RunningFormatter, startFormatterProcess } from './running-formatter.ts';

const missing = s3Missing();
if (missing !== null) console.info(`a formatter over S3 skipped: ${missing}`);

describe.skipIf(missing !== null)('a formatter over S3', () => {
  let s3: S3Server;
  let formatter: RunningFormatter;
  beforeAll(async () => {
    s3 = (await startS3())!;
    const url = `s3://formatter?endpoint=${s3.endpoint}&region=us-east-1`;
    formatter = await startFormatterProcess({}, { url, accessKey: s3.accessKey, secretKey: s3.secretKey });
  });
  afterAll(async () => {
    await formatter?.stop();
    await s3?.stop();
  });

  test('takes a file by a URL and builds a version from it', async () => {
    await formatter.datasets.createDataset({ parent: 'projects/p', datasetId: 'knees' });
    const { url, uri, expireTime } = await formatter.datasets.createUploadUrl({
      parent: 'projects/p',
      fileName: 'rows.jsonl',
    });
    expect(expireTime!.getTime()).toBeGreaterThan(Date.now());
    const bytes = jsonl(Array.from({ length: 50 }, (_, i) => reasoningRow(i)));
    expect((await fetch(url, { method: 'PUT', body: bytes })).status).toBe(200);

    const parent = 'projects/p/datasets/knees';
    const spec = { sources: [{ uri }], model: modelName, maxTokens: 512 };
    const version = await formatter.finish(
      await formatter.datasets.createDatasetVersion({ parent, spec }),
      dataset.DatasetVersion,
    );
    expect(version.stats).toMatchObject({ rowCount: 50, usedRowCount: 50 });
    const { examples } = await formatter.datasets.previewExamples({
      parent,
      datasetVersion: version.name,
      rowIndices: [49],
    });
    expect(examples[0]!.text).toContain('Question 49?');
  });
});
