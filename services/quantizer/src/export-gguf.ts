import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { names } from '@medmesh/catalog';
import { exportGguf as convert, type GgufType } from '@medmesh/engine';
import { model } from '@medmesh/proto';
import type { QuantizerDeps, Run } from './deps.ts';
import { checkExport, folderUri } from './export-model.ts';
import { failureOf, stagingFolder } from './staging.ts';

const types: Partial<Record<model.ExportFormat, GgufType>> = {
  [model.ExportFormat.GGUF_F16]: 'f16',
  [model.ExportFormat.GGUF_Q8_0]: 'q8_0',
  [model.ExportFormat.GGUF_Q4_0]: 'q4_0',
  [model.ExportFormat.GGUF_Q4_K_M]: 'q4_k_m',
};

/** The bytes of a file, and then the digest of what was read. */
function hashedFile(path: string, signal: AbortSignal) {
  const hash = createHash('sha256');
  async function* bytes(): AsyncGenerator<Uint8Array> {
    for await (const chunk of createReadStream(path, { signal }) as AsyncIterable<Buffer>) {
      hash.update(chunk);
      yield chunk;
    }
  }
  return { bytes: bytes(), digest: () => `sha256:${hash.digest('hex')}` };
}

/**
 * Makes one GGUF file of a model, with an adapter added if one is named, and writes it to a folder or bucket as `{model}[-{adapter}]-{type}.gguf`.
 * It appears complete or not at all. What llama.cpp cannot express fails with the setting's name.
 */
export async function exportGguf(
  deps: QuantizerDeps,
  request: model.ExportModelRequest,
  { operation, report, signal }: Run,
): Promise<model.ExportModelResponse> {
  const { found, adapter } = await checkExport(deps, request);
  const type = types[request.format] ?? 'f16';
  const ids = [names.model.parse(found.name).model, ...(adapter ? [names.adapter.parse(adapter.name).adapter] : [])];
  const fileName = `${ids.join('-')}-${type}.gguf`;
  const staging = stagingFolder(deps.config.STAGING_DIR, 'derive', [operation]);
  const releases: (() => void)[] = [];
  const folderOf = async (digest: string): Promise<string> => {
    const { dir, release } = await deps.cache.materialize(await deps.store.getManifest(digest), signal);
    releases.push(release);
    return dir;
  };
  try {
    await rm(staging, { recursive: true, force: true });
    await mkdir(staging, { recursive: true });
    const outPath = join(staging, fileName);
    const { fileBytes, parity } = await convert({
      modelDir: await folderOf(found.digest),
      adapterDir: adapter && (await folderOf(adapter.digest)),
      outPath,
      type,
      name: ids.join('-'),
      onProgress: ({ done, total }) => report('CONVERT', done, total),
      signal,
    });
    const { bytes, digest } = hashedFile(outPath, signal);
    await deps.store.writeUri(`${folderUri(request)}/${fileName}`, bytes, {
      signal,
      onProgress: (done) => report('STORE', done, fileBytes),
    });
    const file = { path: fileName, digest: digest(), sizeBytes: fileBytes };
    return model.ExportModelResponse.fromPartial({ destinationUri: folderUri(request), files: [file], parity });
  } catch (error) {
    throw failureOf(error, signal);
  } finally {
    for (const release of releases) release();
    await rm(staging, { recursive: true, force: true });
  }
}
