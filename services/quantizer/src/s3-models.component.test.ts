import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { openObjectStore } from '@medmesh/objects';
import { model } from '@medmesh/proto';
import { type S3Server, s3Missing, startS3, tempDir } from '@medmesh/testkit';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { writeModelFolder } from '../test/model-fixture.ts';
import { type RunningQuantizer, startQuantizerProcess } from '../test/running-quantizer.ts';

const missing = s3Missing();

describe.skipIf(missing !== null)(`with S3 as object store${missing === null ? '' : ` (${missing})`}`, () => {
  let s3: S3Server;
  let quantizer: RunningQuantizer;
  let bucket: string;
  let folder: string;
  let imported: model.Model;

  beforeAll(async () => {
    s3 = (await startS3())!;
    bucket = await s3.bucket('files');
    const store = {
      url: `s3://${await s3.bucket('blobs')}?endpoint=${s3.endpoint}&region=us-east-1`,
      accessKey: s3.accessKey,
      secretKey: s3.secretKey,
      uriRoots: `s3://${bucket}/models,s3://${bucket}/out`,
    };
    quantizer = await startQuantizerProcess({ store });
    folder = await writeModelFolder(undefined, { hidden: 256, intermediate: 1024, layers: 4 });
    mkdirSync(join(folder, 'original'));
    writeFileSync(join(folder, 'original', 'consolidated.pth'), 'pickle');
    const outside = await openObjectStore({ ...store, uriRoots: [`s3://${bucket}`] });
    for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true })) {
      if (!entry.isFile()) continue;
      const path = join(entry.parentPath, entry.name);
      await outside.writeUri(`s3://${bucket}/models/tiny/${path.slice(folder.length + 1)}`, { path });
    }
    await outside.writeUri(`s3://${bucket}/secret/config.json`, Buffer.from('{}'));
    imported = await quantizer.import({ modelId: 'tiny', uri: `s3://${bucket}/models/tiny` });
  }, 120_000);
  afterAll(async () => {
    await quantizer.stop();
    await s3.stop();
  });

  test('a model is imported from a prefix, without the copies in subfolders', async () => {
    expect(imported).toMatchObject({
      state: model.Model_State.READY,
      origin: { uri: `s3://${bucket}/models/tiny`, revision: '' },
    });
    expect(imported.files.map((file) => file.path)).not.toContain('original/consolidated.pth');
    const weights = imported.files.find((file) => file.path === 'model.safetensors')!;
    const blob = Buffer.concat(await Array.fromAsync(quantizer.store.readBlob(weights.digest)));
    expect(blob.equals(readFileSync(join(folder, 'model.safetensors')))).toBe(true);
    expect(quantizer.staged()).toEqual([]);
  });

  test('a prefix that no operator allowed is refused', async () => {
    for (const uri of [`s3://${bucket}/secret`, `s3://${bucket}/models/../secret`, 's3://another-bucket/models']) {
      const importing = quantizer.import({ modelId: 'secret', uri });
      await expect(importing).rejects.toMatchObject({
        code: expect.stringMatching(/permission_denied|invalid_argument/) as string,
      });
    }
  });

  test('a prefix without objects is not found', async () => {
    await expect(quantizer.import({ modelId: 'none', uri: `s3://${bucket}/models/none` })).rejects.toMatchObject({
      code: 'not_found',
    });
  });

  test('a model is quantized from the store’s cache and exported to another prefix', async () => {
    const operation = await quantizer.models().quantizeModel({ sourceModel: imported.name, modelId: 'tiny-nf4' });
    const quantized = await quantizer.finish(operation, model.Model);
    const destinationUri = `s3://${bucket}/out/nf4`;
    const exporting = await quantizer.models().exportModel({ name: quantized.name, destinationUri });
    const { files } = await quantizer.finish(exporting, model.ExportModelResponse);
    const dir = tempDir('exported');
    for (const file of files) {
      const bytes = Buffer.concat(await Array.fromAsync(quantizer.store.readUri(`${destinationUri}/${file.path}`)));
      expect(bytes).toHaveLength(file.sizeBytes);
      writeFileSync(join(dir, file.path), bytes);
    }
    expect(JSON.parse(readFileSync(join(dir, 'config.json'), 'utf8'))).toMatchObject({
      quantization_config: { quant_method: 'bitsandbytes' },
    });
  });
});
