import { Failure } from '@medmesh/errors';
import { z } from 'zod';
import { getBytes, getJson, type HttpOptions } from './http.ts';
import type { ModelSource, SourceFile } from './model-source.ts';

// GET /api/models/{repo}/revision/{revision}: the commit behind a branch, tag or commit.
const ModelAnswer = z.object({ sha: z.string().regex(/^[0-9a-f]{40,64}$/) });

// GET /api/models/{repo}/tree/{commit}?recursive=true: every file; `lfs.oid` is the SHA-256 of large ones.
const TreeAnswer = z.array(
  z.object({
    type: z.string(),
    path: z.string().max(1024),
    size: z.number().int().min(0),
    lfs: z.object({ oid: z.string(), size: z.number().int().min(0) }).optional(),
  }),
);

const invalid = (host: string, cause: unknown) => new Failure('data_loss', `${host} answers in another form than the Hugging Face protocol`, { reason: 'HUB_ANSWER_INVALID', cause });

/** Opens `owner/name` at a revision, which is resolved once: every file comes from that commit. */
export async function openHuggingFace(hub: string, repo: string, revision: string, o: HttpOptions): Promise<ModelSource> {
  const base = hub.replace(/\/+$/, '');
  const api = `${base}/api/models/${repo}`;
  const model = ModelAnswer.safeParse(await getJson(new URL(`${api}/revision/${encodeURIComponent(revision || 'main')}`), o));
  if (!model.success) throw invalid(new URL(base).host, model.error);
  const commit = model.data.sha;
  const tree = TreeAnswer.safeParse(await getJson(new URL(`${api}/tree/${commit}?recursive=true`), o));
  if (!tree.success) throw invalid(new URL(base).host, tree.error);
  const files = tree.data
    .filter((entry) => entry.type === 'file')
    .map((entry): SourceFile => {
      const file = { path: entry.path, sizeBytes: entry.lfs?.size ?? entry.size };
      return entry.lfs !== undefined && /^[0-9a-f]{64}$/.test(entry.lfs.oid) ? { ...file, sha256: entry.lfs.oid } : file;
    });
  const pathOf = (path: string) => path.split('/').map(encodeURIComponent).join('/');
  return {
    revision: commit,
    files,
    read: (path, offset, signal) => getBytes(new URL(`${base}/${repo}/resolve/${commit}/${pathOf(path)}`), offset, { ...o, signal }),
  };
}
