import { Failure } from '@medmesh/errors';

export type HttpOptions = { token: string | undefined; signal: AbortSignal };

/** Requests in a row that may fail before an import does. The count starts again with every byte that arrives. */
const maxAttempts = 6;
const firstPauseMs = 250;
/** A hub that sends nothing for so long is asked again. */
const stallMs = 60_000;
const maxRedirects = 5;

const pause = (ms: number, signal: AbortSignal) =>
  new Promise<void>((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener('abort', () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });

function refused(url: URL, status: number): Failure {
  const where = `${url.host}${url.pathname}`;
  if (status === 401 || status === 403) {
    return new Failure('permission_denied', `${where} needs credentials, or refuses these; set HUB_TOKEN`, { reason: 'HUB_CREDENTIALS_REFUSED' });
  }
  if (status === 404) return new Failure('not_found', `${where} does not exist; check name and revision`, { reason: 'HUB_NOT_FOUND' });
  return new Failure('unavailable', `${where} answered ${status}`, { reason: 'HUB_UNAVAILABLE', retryAfterMs: 10_000 });
}

/** Follows redirects by hand, so that the token never goes to another host than the hub's own. */
async function request(start: URL, headers: Record<string, string>, o: HttpOptions): Promise<{ response: Response; firstHeaders: Headers }> {
  let url = start;
  let firstHeaders: Headers | undefined;
  for (let hop = 0; hop <= maxRedirects; hop += 1) {
    const authorization = o.token !== undefined && url.origin === start.origin ? { authorization: `Bearer ${o.token}` } : {};
    const response = await fetch(url, {
      headers: { ...headers, ...authorization, 'user-agent': 'medmesh/0.1', 'accept-encoding': 'identity' },
      redirect: 'manual',
      signal: AbortSignal.any([o.signal, AbortSignal.timeout(stallMs)]),
    });
    firstHeaders ??= response.headers;
    const location = response.headers.get('location');
    if (response.status < 300 || response.status >= 400 || location === null) return { response, firstHeaders };
    await response.body?.cancel();
    url = new URL(location, url);
  }
  throw new Failure('unavailable', `${start.host} redirects more than ${maxRedirects} times`, { reason: 'HUB_UNAVAILABLE' });
}

/** Runs `attempt` until it works; passing faults are tried again after a growing pause. */
async function persistent<T>(o: HttpOptions, attempt: () => Promise<T>): Promise<T> {
  for (let tries = 1; ; tries += 1) {
    try {
      return await attempt();
    } catch (error) {
      o.signal.throwIfAborted();
      const passing = !(error instanceof Failure) || error.code === 'unavailable';
      if (!passing) throw error;
      if (tries >= maxAttempts) {
        throw error instanceof Failure ? error : new Failure('unavailable', 'the hub cannot be reached', { reason: 'HUB_UNAVAILABLE', cause: error });
      }
      await pause(firstPauseMs * 2 ** (tries - 1), o.signal);
    }
  }
}

/** A JSON answer of at most 32 MiB. */
export function getJson(url: URL, o: HttpOptions): Promise<unknown> {
  return persistent(o, async () => {
    const { response } = await request(url, { accept: 'application/json' }, o);
    if (!response.ok) throw refused(url, response.status);
    const text = await response.text();
    if (text.length > 32 * 2 ** 20) throw new Failure('data_loss', `${url.host} answers with ${text.length} characters of JSON`, { reason: 'HUB_ANSWER_INVALID' });
    try {
      return JSON.parse(text) as unknown;
    } catch (cause) {
      throw new Failure('data_loss', `${url.host}${url.pathname} answers with something that is not JSON`, { reason: 'HUB_ANSWER_INVALID', cause });
    }
  });
}

/** A file's bytes from `offset` on. A connection that breaks is taken up again where it broke. */
export async function* getBytes(url: URL, offset: number, o: HttpOptions): AsyncGenerator<Uint8Array> {
  let at = offset;
  for (let tries = 1; ; ) {
    try {
      const { response } = await request(url, at > 0 ? { range: `bytes=${at}-` } : {}, o);
      // Nothing is left after `at`.
      if (response.status === 416) return;
      if (!response.ok) throw refused(url, response.status);
      // A server that ignores the range starts from the beginning: skip what is there.
      let skip = at > 0 && response.status === 200 ? at : 0;
      if (response.body === null) return;
      for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
        o.signal.throwIfAborted();
        const fresh = chunk.subarray(Math.min(skip, chunk.length));
        skip -= chunk.length - fresh.length;
        if (fresh.length === 0) continue;
        at += fresh.length;
        tries = 1;
        yield fresh;
      }
      return;
    } catch (error) {
      o.signal.throwIfAborted();
      if (error instanceof Failure && error.code !== 'unavailable') throw error;
      if (tries >= maxAttempts) {
        throw error instanceof Failure ? error : new Failure('unavailable', `${url.host} broke off ${tries} times`, { reason: 'HUB_UNAVAILABLE', cause: error });
      }
      await pause(firstPauseMs * 2 ** (tries - 1), o.signal);
      tries += 1;
    }
  }
}

