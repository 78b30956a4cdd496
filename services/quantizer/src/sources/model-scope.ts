import { Failure } from '@medmesh/errors';
import { z } from 'zod';
import { getBytes, getJson, type HttpOptions } from './http.ts';
import type { ModelSource, SourceFile } from './model-source.ts';

// GET /api/v1/models/{repo}/repo/files?Revision=…&Recursive=true: every file with its SHA-256 and the commit it last changed in.
const FilesAnswer = z.object({
  Code: z.number(),
  Data: z.object({
    Files: z.array(
      z.object({
        Type: z.string(),
        Path: z.string().max(1024),
        Size: z.number().int().min(0),
        Sha256: z.string().optional(),
        Revision: z.string().optional(),
      }),
    ),
    LatestCommitter: z.object({ Id: z.string().optional() }).nullish(),
  }),
});

const commitId = /^[0-9a-f]{40,64}$/;

/**
 * Opens `owner/name` at a revision. ModelScope names the commit in `LatestCommitter.Id`; where it does not, the revision asked for is recorded and the
 * files' digests pin the content.
 */
export async function openModelScope(hub: string, repo: string, revision: string, o: HttpOptions): Promise<ModelSource> {
  const base = hub.replace(/\/+$/, '');
  const asked = revision || 'master';
  const url = new URL(`${base}/api/v1/models/${repo}/repo/files`);
  url.searchParams.set('Revision', asked);
  url.searchParams.set('Recursive', 'true');
  const answer = FilesAnswer.safeParse(await getJson(url, o));
  if (!answer.success || answer.data.Code !== 200) {
    throw new Failure('data_loss', `${url.host} answers in another form than the ModelScope protocol`, { reason: 'HUB_ANSWER_INVALID', cause: answer.error });
  }
  const latest = answer.data.Data.LatestCommitter?.Id ?? '';
  const commit = commitId.test(latest) ? latest : asked;
  const files = answer.data.Data.Files.filter((entry) => entry.Type === 'blob').map((entry): SourceFile => {
    const file = { path: entry.Path, sizeBytes: entry.Size };
    return entry.Sha256 !== undefined && /^[0-9a-f]{64}$/.test(entry.Sha256) ? { ...file, sha256: entry.Sha256 } : file;
  });
  return {
    revision: commit,
    files,
    read(path, offset, signal) {
      const file = new URL(`${base}/api/v1/models/${repo}/repo`);
      file.searchParams.set('Revision', commit);
      file.searchParams.set('FilePath', path);
      return getBytes(file, offset, { ...o, signal });
    },
  };
}
