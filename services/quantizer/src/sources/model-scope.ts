import { Failure } from '@medmesh/errors';
import { z } from 'zod';
import { getBytes, getJson, type HubAccess, invalidAnswer } from './hub-http.ts';
import { checkListing, maxListedFiles } from './hub-listing.ts';
import type { ModelSource, SourceFile } from './model-source.ts';

// GET /api/v1/models/{repo}/repo/files?Revision=…&Recursive=True: every file with its SHA-256 and, as `Revision`, the commit it last changed in.
// A revision that does not exist is answered by 200 and `Files: null`. `LatestCommitter.Id` is often empty; `ShortId` begins the newest commit.
const FilesAnswer = z.object({
  Code: z.number(),
  Data: z.object({
    Files: z
      .array(
        z.object({
          Type: z.string(),
          Path: z.string().max(1024),
          Size: z.number().int().min(0),
          Sha256: z.string().nullish(),
          Revision: z.string().nullish(),
        }),
      )
      .max(maxListedFiles)
      .nullable(),
    LatestCommitter: z.object({ Id: z.string().nullish(), ShortId: z.string().nullish() }).nullish(),
  }),
});

type Listed = NonNullable<z.infer<typeof FilesAnswer>['Data']['Files']>[number];

const isCommit = (text: string | null | undefined): text is string => /^[0-9a-f]{40}$/.test(text ?? '');

/** The newest commit, where the answer tells it in full; otherwise the revision that was asked for. The files' digests pin the content either way. */
function commitOf(data: z.infer<typeof FilesAnswer>['Data'], files: readonly Listed[], asked: string): string {
  const { Id: id, ShortId: shortId } = data.LatestCommitter ?? {};
  if (isCommit(id)) return id;
  if (isCommit(asked) || !/^[0-9a-f]{7,}$/.test(shortId ?? '')) return asked;
  return (
    files.map((file) => file.Revision).find((revision) => isCommit(revision) && revision.startsWith(shortId!)) ?? asked
  );
}

/**
 * Opens `owner/name` at a revision. Each file is read from the commit it last changed in, so a branch that moves meanwhile changes nothing;
 * where the hub does not tell the commits, a file that changed meanwhile fails its digest.
 */
export async function openModelScope(hub: string, repo: string, revision: string, o: HubAccess): Promise<ModelSource> {
  const url = new URL(`${hub}/api/v1/models/${repo}/repo/files`);
  // Without a revision the hub takes the repository's own default branch.
  if (revision !== '') url.searchParams.set('Revision', revision);
  url.searchParams.set('Recursive', 'True');
  const answer = FilesAnswer.safeParse((await getJson(url, o)).body);
  if (!answer.success || answer.data.Code !== 200) {
    throw invalidAnswer(url.host, 'lists files in another form than the ModelScope protocol', answer.error);
  }
  const data = answer.data.Data;
  if (data.Files === null) {
    throw new Failure(
      'not_found',
      `${url.host} has no revision ${JSON.stringify(revision)} of ${repo}, or it is empty; ModelScope’s usual branch is master`,
      {
        reason: 'HUB_NOT_FOUND',
      },
    );
  }
  const blobs = data.Files.filter((entry) => entry.Type === 'blob');
  const commit = commitOf(data, blobs, revision || 'master');
  const commits = new Map(blobs.map((entry) => [entry.Path, isCommit(entry.Revision) ? entry.Revision : commit]));
  const files = blobs.map((entry): SourceFile => {
    const file = { path: entry.Path, sizeBytes: entry.Size };
    return /^[0-9a-f]{64}$/.test(entry.Sha256 ?? '')
      ? { ...file, digest: { kind: 'sha256', hex: entry.Sha256! } }
      : file;
  });
  return {
    revision: commit,
    files: checkListing(url.host, files),
    read(path, offset, signal) {
      const file = new URL(`${hub}/api/v1/models/${repo}/repo`);
      file.searchParams.set('Revision', commits.get(path) ?? commit);
      file.searchParams.set('FilePath', path);
      return getBytes(file, offset, { ...o, signal });
    },
  };
}
