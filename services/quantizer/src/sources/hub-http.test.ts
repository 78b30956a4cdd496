import { once } from 'node:events';
import { createServer, type RequestListener } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, expect, test } from 'vitest';
import { getBytes, getJson, type HubAccess } from './hub-http.ts';

const stops: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const stop of stops.splice(0)) await stop();
});

async function serve(listener: RequestListener): Promise<URL> {
  const server = createServer(listener).listen(0, '127.0.0.1');
  await once(server, 'listening');
  stops.push(async () => {
    server.closeAllConnections();
    server.close();
    await once(server, 'close');
  });
  return new URL(`http://127.0.0.1:${(server.address() as AddressInfo).port}/file`);
}

const access = (o: Partial<HubAccess> = {}): HubAccess => ({
  credentials: { authorization: 'Bearer secret' },
  signal: new AbortController().signal,
  patience: { attempts: 3, firstPauseMs: 5, stallMs: 150 },
  ...o,
});

async function readAll(url: URL, offset: number, o: HubAccess): Promise<string> {
  return Buffer.concat(await Array.fromAsync(getBytes(url, offset, o))).toString();
}

const text = 'abcdefghij'.repeat(1000);

test('a connection that breaks is taken up where it broke', async () => {
  const ranges: (string | undefined)[] = [];
  const url = await serve((request, response) => {
    ranges.push(request.headers.range);
    const from = Number(/\d+/.exec(request.headers.range ?? '0')![0]);
    const headers = {
      'content-length': text.length - from,
      'content-range': `bytes ${from}-${text.length - 1}/${text.length}`,
    };
    response.writeHead(from === 0 ? 200 : 206, headers);
    if (from >= 4000) response.end(text.slice(from));
    else response.write(text.slice(from, from + 2000), () => setTimeout(() => response.destroy(), 10));
  });
  expect(await readAll(url, 0, access())).toBe(text);
  expect(ranges).toEqual([undefined, 'bytes=2000-', 'bytes=4000-']);
});

test('a server that ignores the range does not double what is there', async () => {
  const url = await serve((_, response) => void response.end(text));
  expect(await readAll(url, 2500, access())).toBe(text.slice(2500));
});

test('a server that sends another range than was asked for is refused', async () => {
  const url = await serve(
    (_, response) =>
      void response
        .writeHead(206, { 'content-range': `bytes 11-${text.length - 1}/${text.length}` })
        .end(text.slice(11)),
  );
  await expect(readAll(url, 10, access())).rejects.toMatchObject({ code: 'data_loss', reason: 'HUB_ANSWER_INVALID' });
});

test('a hub that falls silent is asked again, and a slow one is not', async () => {
  let requests = 0;
  const silent = await serve((request, response) => {
    requests += 1;
    const from = Number(/\d+/.exec(request.headers.range ?? '0')![0]);
    response.writeHead(from === 0 ? 200 : 206, {
      'content-length': text.length - from,
      'content-range': `bytes ${from}-${text.length - 1}/${text.length}`,
    });
    if (from > 0) response.end(text.slice(from));
    else response.write(text.slice(0, 100));
  });
  expect(await readAll(silent, 0, access())).toBe(text);
  expect(requests).toBe(2);

  let slowRequests = 0;
  const slow = await serve((_, response) => {
    slowRequests += 1;
    let at = 0;
    const timer = setInterval(() => {
      response.write(text.slice(at, at + 1000));
      at += 1000;
      if (at >= text.length) {
        clearInterval(timer);
        response.end();
      }
    }, 60);
  });
  // 600 ms in all, four times what a stall may last.
  expect(await readAll(slow, 0, access())).toBe(text);
  expect(slowRequests).toBe(1);
});

test('credentials stay with the origin that was asked, also over several redirects', async () => {
  const seen: [string, string | undefined][] = [];
  const elsewhere = await serve((request, response) => {
    seen.push(['elsewhere', request.headers.authorization]);
    response.end('{}');
  });
  const url = await serve((request, response) => {
    seen.push([request.url!, request.headers.authorization]);
    response.writeHead(302, { location: request.url === '/file' ? '/second' : elsewhere.href }).end();
  });
  expect((await getJson(url, access())).body).toEqual({});
  expect(seen).toEqual([
    ['/file', 'Bearer secret'],
    ['/second', 'Bearer secret'],
    ['elsewhere', undefined],
  ]);
});

test.each(['file:///etc/passwd', 'data:application/json,{}'])('a redirect to %s is not followed', async (location) => {
  const url = await serve((_, response) => void response.writeHead(302, { location }).end());
  await expect(getJson(url, access())).rejects.toMatchObject({ code: 'data_loss', reason: 'HUB_ANSWER_INVALID' });
});

test('redirects in a circle end', async () => {
  const url = await serve((_, response) => void response.writeHead(302, { location: '/file' }).end());
  await expect(getJson(url, access())).rejects.toMatchObject({
    message: expect.stringContaining('more than 5 times') as string,
  });
});

test.each([
  [401, 'permission_denied', 'HUB_CREDENTIALS_REFUSED', 1],
  [403, 'permission_denied', 'HUB_CREDENTIALS_REFUSED', 1],
  [404, 'not_found', 'HUB_NOT_FOUND', 1],
  [400, 'failed_precondition', 'HUB_REFUSED', 1],
  [429, 'unavailable', 'HUB_RATE_LIMITED', 3],
  [503, 'unavailable', 'HUB_UNAVAILABLE', 3],
])('status %i is %s %s after %i requests', async (status, code, reason, count) => {
  let requests = 0;
  const url = await serve((_, response) => {
    requests += 1;
    response.writeHead(status).end('<html>');
  });
  await expect(getJson(url, access())).rejects.toMatchObject({ code, reason });
  expect(requests).toBe(count);
});

test('a hub that asks for patience by Retry-After is given it', async () => {
  const times: number[] = [];
  const url = await serve((_, response) => {
    times.push(performance.now());
    if (times.length === 1) response.writeHead(429, { 'retry-after': '1' }).end();
    else response.end('{"ok":true}');
  });
  expect((await getJson(url, access())).body).toEqual({ ok: true });
  expect(times[1]! - times[0]!).toBeGreaterThan(950);
});

test('an abort ends a download and a pause at once, for its own reason', async () => {
  const reason = new Error('enough');
  const silent = await serve((_, response) => void response.write('x'));
  const away = await serve((_, response) => void response.writeHead(503, { 'retry-after': '60' }).end());
  for (const url of [silent, away]) {
    const abort = new AbortController();
    const reading = readAll(
      url,
      0,
      access({ signal: abort.signal, patience: { attempts: 9, firstPauseMs: 60_000, stallMs: 60_000 } }),
    );
    setTimeout(() => abort.abort(reason), 50);
    await expect(reading).rejects.toBe(reason);
  }
});

test('a hub that cannot be reached is unavailable, by name and count', async () => {
  await expect(getJson(new URL('http://127.0.0.1:1/'), access())).rejects.toMatchObject({
    code: 'unavailable',
    message: '127.0.0.1:1 cannot be reached, or breaks off; asked 3 times',
  });
});

test('an endless JSON answer is cut off', async () => {
  const mebibyte = Buffer.alloc(2 ** 20, ' ');
  const url = await serve((_, response) => {
    const more = () => void response.write(mebibyte, () => response.destroyed || more());
    more();
  });
  await expect(getJson(url, access())).rejects.toMatchObject({
    code: 'data_loss',
    message: expect.stringContaining('more than 33554432 bytes') as string,
  });
});

test('an answer that is not JSON is refused', async () => {
  const url = await serve((_, response) => void response.end('<html>log in</html>'));
  await expect(getJson(url, access())).rejects.toMatchObject({ code: 'data_loss', reason: 'HUB_ANSWER_INVALID' });
});
