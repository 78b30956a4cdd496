import { z } from 'zod';
import { getBytes, getJson, type HubAccess, invalidAnswer } from './hub-http.ts';
import { checkListing, maxListedFiles } from './hub-listing.ts';
import type { ModelSource, PublishedDigest, SourceFile } from './model-source.ts';

// GET /api/models/{repo}/revision/{revision}: the commit behind a branch, tag or commit.
const ModelAnswer = z.object({ sha: z.string().regex(/^[0-9a-f]{40}$/) });

// GET /api/models/{repo}/tree/{commit}?recursive=true: a page of entries. `oid` is git's name of the file; large files are kept apart, and
// `lfs.oid` is the SHA-256 of what they hold. The next page's address is in the Link header.
const TreeAnswer = z.array(
  z.object({
    type: z.string(),
    path: z.string().max(1024),
    size: z.number().int().min(0),
    oid: z.string(),
    lfs: z.object({ oid: z.string(), size: z.number().int().min(0) }).nullish(),
  }),
);

type TreeEntry = z.infer<typeof TreeAnswer>[number];

function digestOf(entry: TreeEntry): PublishedDigest | undefined {
  if (entry.lfs) return /^[0-9a-f]{64}$/.test(entry.lfs.oid) ? { kind: 'sha256', hex: entry.lfs.oid } : undefined;
  return /^[0-9a-f]{40}$/.test(entry.oid) ? { kind: 'git-sha1', hex: entry.oid } : undefined;
}

/** The address with `rel="next"` in a Link header. */
function nextPage(headers: Headers, page: URL): URL | null {
  const link = /<([^<>]*)>\s*;[^,]*\brel="?next"?/i.exec(headers.get('link') ?? '')?.[1];
  return link === undefined ? null : URL.parse(link, page.href);
}

async function listTree(first: URL, o: HubAccess): Promise<TreeEntry[]> {
  const entries: TreeEntry[] = [];
  const seen = new Set<string>();
  for (let page: URL | null = first; page !== null; ) {
    seen.add(page.href);
    const { body, headers } = await getJson(page, o);
    const tree = TreeAnswer.safeParse(body);
    if (!tree.success)
      throw invalidAnswer(page.host, 'lists files in another form than the Hugging Face protocol', tree.error);
    entries.push(...tree.data);
    const next = nextPage(headers, page);
    // Pages go on where they began: another origin would be given the token.
    const wrong = next !== null && (next.origin !== first.origin || seen.has(next.href));
    if (wrong || entries.length > maxListedFiles)
      throw invalidAnswer(page.host, 'lists files without end, or goes on elsewhere');
    page = next;
  }
  return entries;
}

/** Opens `owner/name` at a revision, which is resolved once: every file comes from that commit. */
export async function openHuggingFace(hub: string, repo: string, revision: string, o: HubAccess): Promise<ModelSource> {
  const { host } = new URL(hub);
  const api = `${hub}/api/models/${repo}`;
  const { body } = await getJson(new URL(`${api}/revision/${encodeURIComponent(revision || 'main')}`), o);
  const model = ModelAnswer.safeParse(body);
  if (!model.success)
    throw invalidAnswer(host, 'describes the model in another form than the Hugging Face protocol', model.error);
  const commit = model.data.sha;
  const entries = await listTree(new URL(`${api}/tree/${commit}?recursive=true`), o);
  const files = entries
    .filter((entry) => entry.type === 'file')
    .map((entry): SourceFile => {
      const digest = digestOf(entry);
      return { path: entry.path, sizeBytes: entry.lfs?.size ?? entry.size, ...(digest && { digest }) };
    });
  const encoded = (path: string) => path.split('/').map(encodeURIComponent).join('/');
  return {
    revision: commit,
    files: checkListing(host, files),
    read: (path, offset, signal) =>
      getBytes(new URL(`${hub}/${repo}/resolve/${commit}/${encoded(path)}`), offset, { ...o, signal }),
  };
}
