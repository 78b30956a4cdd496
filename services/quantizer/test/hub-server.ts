import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

/** What a file's server does wrong. Faults of content last; the others happen `times` times (default: once). */
export type Fault =
  | { kind: 'cut'; afterBytes: number; times?: number }
  /** From the request number `after` (default 0) on. */
  | { kind: 'status'; status: number; headers?: Record<string, string>; times?: number; after?: number }
  /** Sends nothing more, and keeps the connection open. */
  | { kind: 'stall'; afterBytes: number; times?: number }
  /** One byte is another one. */
  | { kind: 'wrong-byte' }
  | { kind: 'missing-tail'; bytes: number }
  | { kind: 'extra-tail'; bytes: number }
  | { kind: 'ignore-range' }
  /** Answers a range with another one. */
  | { kind: 'shift-range' }
  | { kind: 'slow'; bytesPerSecond: number };

/** One request as a server saw it. */
export type SeenRequest = {
  server: 'hub' | 'cdn';
  path: string;
  /** The file in the repository, if it is one. */
  file: string | undefined;
  headers: IncomingMessage['headers'];
  status: number;
  /** Bytes of the body that were handed to the socket. */
  bytesSent: number;
  /** Whether the answer is complete or the connection gone. */
  ended: boolean;
};

export type HubFiles = Readonly<Record<string, Uint8Array>>;
type Commit = { id: string; files: Map<string, { bytes: Uint8Array; since: string }> };
type Repo = { commits: Map<string, Commit>; branches: Map<string, string>; private?: string; gated?: string };

export type TestHub = {
  /** Where both protocols are spoken. */
  readonly url: string;
  /** Another origin, where large files lie. It refuses whoever brings a token. */
  readonly cdnUrl: string;
  readonly requests: SeenRequest[];
  /** A new commit of a branch (default `main`) with exactly these files. Returns its id. */
  publish(repo: string, files: HubFiles, branch?: string): string;
  /** The newest commit of a branch. */
  commitOf(repo: string, branch: string): string;
  /** Forgets repositories, faults and requests. */
  reset(): void;
  /** Without the token a private repository does not exist, and a gated one lists its files but does not give them. */
  protect(repo: string, as: 'private' | 'gated', token: string): void;
  /** Makes the server of a file (its path in the repository) misbehave. */
  spoil(file: string, fault: Fault): void;
  /** Ends all faults. */
  heal(): void;
  /** Answers the next requests of any kind with this status. */
  fail(status: number, times: number, headers?: Record<string, string>): void;
  /** Bytes of a file that were sent. */
  bytesSent(file: string): number;
  /** Changes what the listing says. */
  forge(change: (entries: Record<string, unknown>[]) => Record<string, unknown>[]): void;
  /** Entries of a page of a Hugging Face listing. The real hub has 1000. */
  pageSize: number;
  close(): Promise<void>;
};

const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');
const gitSha1 = (bytes: Uint8Array) => createHash('sha1').update(`blob ${bytes.length}\0`).update(bytes).digest('hex');
const isLarge = (path: string) => path.endsWith('.safetensors') || path.endsWith('.bin');

/**
 * Speaks the protocols of Hugging Face (api/models/…/revision, …/tree in pages, resolve by redirect) and ModelScope (api/v1/models/…/repo/files,
 * …/repo?FilePath) on two ports of 127.0.0.1, as the real hubs were observed to, and misbehaves on demand.
 */
export async function startHub(): Promise<TestHub> {
  const repos = new Map<string, Repo>();
  const faults = new Map<string, { fault: Fault; wait: number; left: number }[]>();
  const requests: SeenRequest[] = [];
  const failures: { status: number; headers: Record<string, string> }[] = [];
  let forge = (entries: Record<string, unknown>[]) => entries;
  let pageSize = 1000;
  let commits = 0;

  /** Takes a fault of this kind, if the file has one left. */
  function take<K extends Fault['kind']>(file: string, kind: K): Extract<Fault, { kind: K }> | undefined {
    const found = faults.get(file)?.find((entry) => entry.fault.kind === kind && entry.left > 0);
    if (found === undefined) return undefined;
    if (found.wait > 0) {
      found.wait -= 1;
      return undefined;
    }
    found.left -= 1;
    return found.fault as Extract<Fault, { kind: K }>;
  }

  type Exchange = { request: IncomingMessage; response: ServerResponse; seen: SeenRequest };

  const answer = (
    { response, seen }: Exchange,
    status: number,
    body: unknown,
    headers: Record<string, string> = {},
  ) => {
    seen.status = status;
    const text = Buffer.from(typeof body === 'string' ? body : JSON.stringify(body));
    seen.bytesSent += text.length;
    response
      .writeHead(status, { 'content-type': 'application/json', 'content-length': text.length, ...headers })
      .end(text);
  };

  /** Sends a file, or the range that is asked for, with the file's faults. */
  async function sendFile(
    exchange: Exchange,
    file: string,
    content: Uint8Array,
    also: Record<string, string>,
  ): Promise<void> {
    const { request, response, seen } = exchange;
    seen.file = file;
    const status = take(file, 'status');
    if (status) return answer(exchange, status.status, { error: 'out of order' }, status.headers);
    let bytes = content;
    if (take(file, 'wrong-byte')) {
      bytes = Uint8Array.from(content);
      bytes[bytes.length >> 1]! ^= 0x55;
    }
    const missing = take(file, 'missing-tail');
    if (missing) bytes = bytes.subarray(0, -missing.bytes);
    const extra = take(file, 'extra-tail');
    if (extra) bytes = Buffer.concat([bytes, Buffer.alloc(extra.bytes, 'x')]);

    const asked = /^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1];
    const headers: Record<string, string> = {
      'content-type': 'application/octet-stream',
      ...also,
      'accept-ranges': 'bytes',
    };
    let first = 0;
    seen.status = 200;
    if (asked !== undefined && !take(file, 'ignore-range')) {
      first = Number(asked) + (take(file, 'shift-range') ? 1 : 0);
      if (first >= bytes.length) return answer(exchange, 416, '', { 'content-range': `bytes */${bytes.length}` });
      seen.status = 206;
      headers['content-range'] = `bytes ${first}-${bytes.length - 1}/${bytes.length}`;
    }
    const body = bytes.subarray(first);
    response.writeHead(seen.status, { ...headers, 'content-length': String(body.length) });
    const cut = take(file, 'cut');
    const stall = take(file, 'stall');
    const end = Math.min(body.length, cut?.afterBytes ?? body.length, stall?.afterBytes ?? body.length);
    const slow = faults.get(file)?.find((entry) => entry.fault.kind === 'slow')?.fault as
      | Extract<Fault, { kind: 'slow' }>
      | undefined;
    const pieceBytes = slow === undefined ? 64 * 1024 : Math.max(1, Math.floor(slow.bytesPerSecond / 50));
    for (let at = 0; at < end && !response.destroyed; at += pieceBytes) {
      const piece = body.subarray(at, Math.min(at + pieceBytes, end));
      seen.bytesSent += piece.length;
      // The callback comes also when the connection breaks.
      await new Promise<void>((resolve) => void response.write(piece, () => resolve()));
      if (slow !== undefined) await sleep(20);
    }
    if (cut) {
      // What was written should arrive before the connection breaks.
      await sleep(20);
      response.destroy();
    } else if (!stall) {
      response.end();
    }
  }

  /** The repository's commit, or the answer that there is none, as Hugging Face gives it. */
  function resolveHuggingFace(
    exchange: Exchange,
    name: string,
    revision: string,
  ): { repo: Repo; commit: Commit } | undefined {
    const repo = repos.get(name);
    const token = /^Bearer (.+)$/.exec(exchange.request.headers.authorization ?? '')?.[1];
    if (repo === undefined || (repo.private !== undefined && repo.private !== token)) {
      answer(
        exchange,
        token === undefined ? 401 : 404,
        { error: 'Repository not found' },
        { 'x-error-code': 'RepoNotFound', 'x-error-message': 'Repository not found' },
      );
      return undefined;
    }
    const commit = repo.commits.get(repo.branches.get(revision) ?? revision);
    if (commit === undefined) {
      const message = `Invalid rev id: ${revision}`;
      answer(exchange, 404, { error: message }, { 'x-error-code': 'RevisionNotFound', 'x-error-message': message });
      return undefined;
    }
    return { repo, commit };
  }

  function describe(exchange: Exchange, name: string, revision: string): void {
    const found = resolveHuggingFace(exchange, name, revision);
    if (!found) return;
    const { repo, commit } = found;
    answer(exchange, 200, {
      id: name,
      modelId: name,
      sha: commit.id,
      private: repo.private !== undefined,
      gated: repo.gated === undefined ? false : 'manual',
      siblings: [...commit.files.keys()].map((rfilename) => ({ rfilename })),
    });
  }

  function listTree(exchange: Exchange, name: string, revision: string, url: URL): void {
    const found = resolveHuggingFace(exchange, name, revision);
    if (!found) return;
    const entries = forge(
      [...found.commit.files].map(([path, { bytes }]) => {
        if (!isLarge(path)) return { type: 'file', oid: gitSha1(bytes), size: bytes.length, path };
        const pointer = Buffer.from(
          `version https://git-lfs.github.com/spec/v1\noid sha256:${sha256(bytes)}\nsize ${bytes.length}\n`,
        );
        const lfs = { oid: sha256(bytes), size: bytes.length, pointerSize: pointer.length };
        return { type: 'file', oid: gitSha1(pointer), size: bytes.length, lfs, path };
      }),
    );
    const from = Number(url.searchParams.get('cursor') ?? 0);
    const headers: Record<string, string> = { 'x-repo-commit': found.commit.id };
    if (from + pageSize < entries.length) {
      const next = new URL(url);
      next.searchParams.set('cursor', String(from + pageSize));
      headers['link'] = `<${next.href}>; rel="next"`;
    }
    answer(exchange, 200, entries.slice(from, from + pageSize), headers);
  }

  async function resolveFile(exchange: Exchange, name: string, revision: string, path: string): Promise<void> {
    const found = resolveHuggingFace(exchange, name, revision);
    if (!found) return;
    const { repo, commit } = found;
    const token = /^Bearer (.+)$/.exec(exchange.request.headers.authorization ?? '')?.[1];
    if (repo.gated !== undefined && repo.gated !== token) {
      const message = `Access to model ${name} is restricted.`;
      return answer(
        exchange,
        token === undefined ? 401 : 403,
        { error: message },
        { 'x-error-code': 'GatedRepo', 'x-error-message': message },
      );
    }
    const file = commit.files.get(path);
    if (file === undefined)
      return answer(exchange, 404, 'Entry not found', {
        'x-error-code': 'EntryNotFound',
        'x-error-message': 'Entry not found',
      });
    if (isLarge(path)) {
      const digest = sha256(file.bytes);
      const headers = {
        'x-repo-commit': commit.id,
        'x-linked-etag': `"${digest}"`,
        'x-linked-size': String(file.bytes.length),
        location: cdnPath(name, path, digest),
      };
      return answer(exchange, 302, `Found. Redirecting to ${headers.location}`, headers);
    }
    // Small files take a hop within the hub, by a relative address.
    const location = `/api/resolve-cache/models/${name}/${commit.id}/${path.split('/').map(encodeURIComponent).join('/')}`;
    answer(exchange, 307, `Temporary Redirect. Redirecting to ${location}`, { location, 'x-repo-commit': commit.id });
  }

  const cdnPath = (name: string, path: string, digest: string) =>
    `${originOf(cdn)}/repos/${name}/${digest}?file=${encodeURIComponent(path)}&X-Amz-Signature=${'0'.repeat(64)}`;

  const modelScope = (data: unknown, code = 200, message = 'success') => ({
    Code: code,
    Data: data,
    Message: message,
    RequestId: 'test',
    Success: code === 200,
  });

  function findModelScope(exchange: Exchange, name: string): Repo | undefined {
    const repo = repos.get(name);
    const { cookie = '' } = exchange.request.headers;
    if (repo !== undefined && (repo.private === undefined || cookie === `m_session_id=${repo.private}`)) return repo;
    answer(exchange, 404, modelScope(null, 10010205001, 'record not found'));
    return undefined;
  }

  function listModelScope(exchange: Exchange, name: string, url: URL): void {
    const repo = findModelScope(exchange, name);
    if (!repo) return;
    const revision = url.searchParams.get('Revision') ?? [...repo.branches.keys()][0]!;
    const commit = repo.commits.get(repo.branches.get(revision) ?? revision);
    if (commit === undefined) {
      answer(exchange, 200, modelScope({ Files: null, IsVisual: 0, LatestCommitter: null }));
      return;
    }
    const files = forge(
      [...commit.files].map(([path, { bytes, since }]) => ({
        CommitMessage: 'upload',
        CommittedDate: 1726842501,
        IsLFS: isLarge(path),
        Mode: '33188',
        Name: path.split('/').at(-1)!,
        Path: path,
        Revision: since,
        Sha256: sha256(bytes),
        Size: bytes.length,
        Type: 'blob',
      })),
    );
    answer(
      exchange,
      200,
      modelScope({ Files: files, IsVisual: 0, LatestCommitter: { Id: '', ShortId: commit.id.slice(0, 8) } }),
    );
  }

  async function readModelScope(exchange: Exchange, name: string, url: URL): Promise<void> {
    const repo = findModelScope(exchange, name);
    if (!repo) return;
    const revision = url.searchParams.get('Revision') ?? 'master';
    const path = url.searchParams.get('FilePath') ?? '';
    const file = repo.commits.get(repo.branches.get(revision) ?? revision)?.files.get(path);
    if (file === undefined) return answer(exchange, 404, modelScope(null, 10990101007, 'file not found'));
    if (!isLarge(path)) return sendFile(exchange, path, file.bytes, {});
    answer(exchange, 302, '', { location: cdnPath(name, path, sha256(file.bytes)) });
  }

  async function serveHub(exchange: Exchange, url: URL): Promise<void> {
    const path = url.pathname.split('/').map(decodeURIComponent).join('/');
    const route = (pattern: RegExp) => pattern.exec(path)?.slice(1) as [string, string, string] | undefined;
    const failure = failures.shift();
    if (failure) return answer(exchange, failure.status, { error: 'out of order' }, failure.headers);

    const scope = route(/^\/api\/v1\/models\/([^/]+\/[^/]+)\/repo(\/files)?$/);
    if (scope)
      return scope[1] === undefined ? readModelScope(exchange, scope[0], url) : listModelScope(exchange, scope[0], url);
    const cached = route(/^\/api\/resolve-cache\/models\/([^/]+\/[^/]+)\/([^/]+)\/(.+)$/);
    if (cached) {
      const file = resolveHuggingFace(exchange, cached[0], cached[1])?.commit.files.get(cached[2]);
      return file === undefined
        ? undefined
        : sendFile(exchange, cached[2], file.bytes, { etag: `"${gitSha1(file.bytes)}"`, 'x-repo-commit': cached[1] });
    }
    const described = route(/^\/api\/models\/([^/]+\/[^/]+)\/revision\/(.+)$/);
    if (described) return describe(exchange, described[0], described[1]);
    const tree = route(/^\/api\/models\/([^/]+\/[^/]+)\/tree\/(.+)$/);
    if (tree) return listTree(exchange, tree[0], tree[1], url);
    const resolved = route(/^\/([^/]+\/[^/]+)\/resolve\/([^/]+)\/(.+)$/);
    if (resolved) return resolveFile(exchange, ...resolved);
    answer(exchange, 404, { error: 'no such address' });
  }

  async function serveCdn(exchange: Exchange, url: URL): Promise<void> {
    const { authorization, cookie } = exchange.request.headers;
    // A presigned address and a token at once are refused, as object stores do.
    if (authorization !== undefined || cookie !== undefined)
      return answer(exchange, 400, 'Only one auth mechanism allowed');
    const [, name = '', digest = ''] = /^\/repos\/([^/]+\/[^/]+)\/([0-9a-f]{64})$/.exec(url.pathname) ?? [];
    const path = url.searchParams.get('file') ?? '';
    for (const commit of repos.get(name)?.commits.values() ?? []) {
      const file = commit.files.get(path);
      if (file !== undefined && sha256(file.bytes) === digest)
        return sendFile(exchange, path, file.bytes, { etag: `"${digest}"` });
    }
    answer(exchange, 404, 'no such key');
  }

  async function listen(
    server: 'hub' | 'cdn',
    serve: (exchange: Exchange, url: URL) => Promise<void>,
  ): Promise<Server> {
    const http = createServer((request, response) => {
      const url = new URL(request.url ?? '/', `http://${request.headers.host}`);
      const seen: SeenRequest = {
        server,
        path: url.pathname + url.search,
        file: undefined,
        headers: request.headers,
        status: 0,
        bytesSent: 0,
        ended: false,
      };
      requests.push(seen);
      response.on('error', () => undefined);
      response.on('close', () => {
        seen.ended = true;
      });
      serve({ request, response, seen }, url).catch(() => response.destroy());
    });
    http.listen(0, '127.0.0.1');
    await once(http, 'listening');
    return http;
  }

  const originOf = (server: Server) => `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const hub = await listen('hub', serveHub);
  const cdn = await listen('cdn', serveCdn);

  return {
    url: originOf(hub),
    cdnUrl: originOf(cdn),
    requests,
    publish(name, files, branch = 'main') {
      const repo = repos.get(name) ?? { commits: new Map(), branches: new Map() };
      repos.set(name, repo);
      const before = repo.commits.get(repo.branches.get(branch) ?? '');
      commits += 1;
      const id = createHash('sha1').update(`${name} ${commits}`).digest('hex');
      const held = Object.entries(files).map(([path, bytes]) => {
        const old = before?.files.get(path);
        const same = old !== undefined && Buffer.compare(old.bytes, bytes) === 0;
        return [path, { bytes, since: same ? old.since : id }] as const;
      });
      repo.commits.set(id, { id, files: new Map(held) });
      repo.branches.set(branch, id);
      return id;
    },
    commitOf: (name, branch) => repos.get(name)!.branches.get(branch)!,
    reset() {
      repos.clear();
      faults.clear();
      requests.length = 0;
      failures.length = 0;
      forge = (entries) => entries;
    },
    protect(name, as, token) {
      repos.get(name)![as] = token;
    },
    spoil(file, fault) {
      const passing = fault.kind === 'cut' || fault.kind === 'status' || fault.kind === 'stall';
      const left = passing ? (fault.times ?? 1) : Number.POSITIVE_INFINITY;
      faults.set(file, [
        ...(faults.get(file) ?? []),
        { fault, left, wait: fault.kind === 'status' ? (fault.after ?? 0) : 0 },
      ]);
    },
    heal() {
      faults.clear();
      failures.length = 0;
    },
    fail(status, times, headers = {}) {
      for (let i = 0; i < times; i += 1) failures.push({ status, headers });
    },
    bytesSent: (file) => requests.filter((seen) => seen.file === file).reduce((sum, seen) => sum + seen.bytesSent, 0),
    forge(change) {
      forge = change;
    },
    get pageSize() {
      return pageSize;
    },
    set pageSize(size) {
      pageSize = size;
    },
    async close() {
      for (const server of [hub, cdn]) {
        server.closeAllConnections();
        server.close();
        await once(server, 'close');
      }
    },
  };
}
