import { setTimeout as sleep } from 'node:timers/promises';
import { Failure } from '@medmesh/errors';

/** How long a hub that fails is asked again. The count starts anew with every byte that arrives. */
export type Patience = {
  /** Requests in a row that may fail. */
  attempts: number;
  /** Before the second request; doubled before each one after it. */
  firstPauseMs: number;
  /** A hub that sends nothing for so long is asked again. */
  stallMs: number;
};

export const hubPatience: Patience = { attempts: 6, firstPauseMs: 250, stallMs: 60_000 };

export type HubAccess = {
  /** Headers that carry the token. They go to the origin of the address asked, never on to where it redirects. */
  readonly credentials: Readonly<Record<string, string>>;
  readonly signal: AbortSignal;
  readonly patience?: Patience;
};

const maxRedirects = 5;
const maxJsonBytes = 32 * 2 ** 20;
/** A hub may ask for more patience than ours, but not for hours. */
const maxRetryAfterMs = 60_000;

/** The hub does not speak its protocol; what was seen is not repeated, it may be anything. */
export const invalidAnswer = (host: string, what: string, cause?: unknown): Failure =>
  new Failure('data_loss', `${host} ${what}`, { reason: 'HUB_ANSWER_INVALID', cause });

function refused(url: URL, response: Response): Failure {
  const where = `${url.host}${url.pathname}`;
  const { status } = response;
  // Hugging Face answers 401 for what does not exist, lest it tell that something private does.
  if (status === 401 || status === 403) {
    return new Failure(
      'permission_denied',
      `${where} answered ${status}: it does not exist, or needs an access token with rights to it; check the name, or let the operator set the hub’s token`,
      { reason: 'HUB_CREDENTIALS_REFUSED' },
    );
  }
  if (status === 404 || status === 410) {
    return new Failure('not_found', `${where} does not exist; check name and revision`, { reason: 'HUB_NOT_FOUND' });
  }
  if (status === 408 || status === 429 || status >= 500) {
    const seconds = Number(response.headers.get('retry-after') ?? Number.NaN);
    return new Failure('unavailable', `${where} answered ${status}; try again later`, {
      reason: status === 429 ? 'HUB_RATE_LIMITED' : 'HUB_UNAVAILABLE',
      ...(seconds >= 0 ? { retryAfterMs: Math.min(seconds * 1000, maxRetryAfterMs) } : {}),
    });
  }
  return new Failure('failed_precondition', `${where} answered ${status}`, { reason: 'HUB_REFUSED' });
}

/** Follows redirects by hand: the credentials stay with the hub's own origin, and https never becomes http. */
async function follow(
  start: URL,
  headers: Record<string, string>,
  credentials: HubAccess['credentials'],
  signal: AbortSignal,
): Promise<{ url: URL; response: Response }> {
  let url = start;
  for (let hop = 0; hop <= maxRedirects; hop += 1) {
    const response = await fetch(url, {
      headers: {
        ...headers,
        ...(url.origin === start.origin ? credentials : {}),
        'user-agent': 'medmesh/0.1',
        // Ranges count bytes of the file, not of a compressed form of it.
        'accept-encoding': 'identity',
      },
      redirect: 'manual',
      signal,
    });
    const location = response.headers.get('location');
    if (response.status < 300 || response.status >= 400 || location === null) return { url, response };
    await response.body?.cancel();
    const next = URL.parse(location, url.href);
    if (next === null || !/^https?:$/.test(next.protocol) || (url.protocol === 'https:' && next.protocol === 'http:')) {
      throw invalidAnswer(
        url.host,
        'redirects to an address that is not followed; only http and https are, and https only to https',
      );
    }
    url = next;
  }
  throw invalidAnswer(start.host, `redirects more than ${maxRedirects} times`);
}

/** Aborts its signal when nothing happened for a while; `beat` tells that something did. */
function watchForStall(ms: number) {
  const controller = new AbortController();
  const timer = setTimeout(() => {
    controller.abort(new Failure('unavailable', `the hub sent nothing for ${ms} ms`, { reason: 'HUB_STALLED' }));
  }, ms);
  return { signal: controller.signal, beat: () => void timer.refresh(), stop: () => clearTimeout(timer) };
}

/** One request and its body. `take` sees the chunks as they come; an answer that is not 2xx (or 416, if `headers` ask for a range) is a Failure. */
async function* exchange(
  url: URL,
  headers: Record<string, string>,
  o: HubAccess,
): AsyncGenerator<{ response: Response; chunk: Uint8Array | undefined }> {
  const { stallMs } = o.patience ?? hubPatience;
  const stall = watchForStall(stallMs);
  try {
    const signal = AbortSignal.any([o.signal, stall.signal]);
    const { url: last, response } = await follow(url, headers, o.credentials, signal);
    if (!response.ok && !(response.status === 416 && 'range' in headers)) {
      await response.body?.cancel();
      throw refused(last, response);
    }
    yield { response, chunk: undefined };
    if (response.body === null) return;
    for await (const chunk of response.body as AsyncIterable<Uint8Array>) {
      stall.beat();
      yield { response, chunk };
    }
  } finally {
    stall.stop();
  }
}

/** Counts failures in a row: waits before the next attempt, or throws when there were too many or another one would not help. */
function countFailures(host: string, o: HubAccess) {
  const { attempts, firstPauseMs } = o.patience ?? hubPatience;
  let failed = 0;
  return {
    reset() {
      failed = 0;
    },
    async wait(error: unknown): Promise<void> {
      o.signal.throwIfAborted();
      if (error instanceof Failure && error.code !== 'unavailable') throw error;
      failed += 1;
      if (failed >= attempts) {
        if (error instanceof Failure) throw error;
        throw new Failure('unavailable', `${host} cannot be reached, or breaks off; asked ${failed} times`, {
          reason: 'HUB_UNAVAILABLE',
          cause: error,
        });
      }
      const asked = error instanceof Failure ? (error.retryAfterMs ?? 0) : 0;
      try {
        await sleep(Math.max(asked, firstPauseMs * 2 ** (failed - 1)), undefined, { signal: o.signal });
      } catch {
        throw o.signal.reason;
      }
    },
  };
}

/** A JSON answer of at most 32 MiB, and the headers it came with. */
export async function getJson(url: URL, o: HubAccess): Promise<{ body: unknown; headers: Headers }> {
  const failures = countFailures(url.host, o);
  for (;;) {
    try {
      const chunks: Uint8Array[] = [];
      let size = 0;
      let headers = new Headers();
      for await (const { response, chunk } of exchange(url, { accept: 'application/json' }, o)) {
        headers = response.headers;
        if (chunk === undefined) continue;
        size += chunk.length;
        if (size > maxJsonBytes) throw invalidAnswer(url.host, `sends more than ${maxJsonBytes} bytes of JSON`);
        chunks.push(chunk);
      }
      return { body: parseJson(url, Buffer.concat(chunks)), headers };
    } catch (error) {
      await failures.wait(error);
    }
  }
}

function parseJson(url: URL, bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString('utf8')) as unknown;
  } catch (cause) {
    throw invalidAnswer(url.host, `answers ${url.pathname} with something that is not JSON`, cause);
  }
}

/** A file's bytes from `offset` on. A connection that breaks is taken up again where it broke. */
export async function* getBytes(url: URL, offset: number, o: HubAccess): AsyncGenerator<Uint8Array> {
  const failures = countFailures(url.host, o);
  let at = offset;
  for (;;) {
    try {
      let skip = 0;
      for await (const { response, chunk } of exchange(url, at > 0 ? { range: `bytes=${at}-` } : {}, o)) {
        // Nothing is left after `at`.
        if (response.status === 416) return;
        if (chunk === undefined) {
          skip = bytesBefore(url, response, at);
          continue;
        }
        const fresh = chunk.subarray(Math.min(skip, chunk.length));
        skip -= chunk.length - fresh.length;
        if (fresh.length === 0) continue;
        at += fresh.length;
        failures.reset();
        yield fresh;
      }
      return;
    } catch (error) {
      await failures.wait(error);
    }
  }
}

/** How many bytes of the answer lie before `at`: all of them up to there if the server ignored the range. */
function bytesBefore(url: URL, response: Response, at: number): number {
  if (response.status !== 206) return at;
  const first = /^bytes (\d{1,15})-/.exec(response.headers.get('content-range') ?? '')?.[1];
  if (at === 0 || Number(first) !== at)
    throw invalidAnswer(url.host, 'sends another part of a file than was asked for');
  return 0;
}
