import { createHash } from 'node:crypto';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { startHub, type TestHub } from '../../test/hub-server.ts';
import { openModelScope } from './model-scope.ts';

let hub: TestHub;
beforeEach(async () => {
  hub = await startHub();
});
afterEach(() => hub.close());

const credentials = (token: string) => ({ authorization: `Bearer ${token}`, cookie: `m_session_id=${token}` });
const open = (revision = '', token?: string) =>
  openModelScope(hub.url, 'acme/tiny', revision, {
    credentials: token === undefined ? {} : credentials(token),
    signal: new AbortController().signal,
    patience: { attempts: 3, firstPauseMs: 5, stallMs: 500 },
  });
const read = async (source: Awaited<ReturnType<typeof open>>, path: string, offset = 0) =>
  Buffer.concat(await Array.fromAsync(source.read(path, offset, new AbortController().signal))).toString();

const files = {
  'config.json': Buffer.from('{"a":1}'),
  'model.safetensors': Buffer.from('weights'),
  'sub/na me+1.txt': Buffer.from('x'),
};
const sha256 = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex');

test('every file comes with its size and SHA-256', async () => {
  hub.publish('acme/tiny', files, 'master');
  const listed = Object.entries(files).map(([path, bytes]) => ({
    path,
    sizeBytes: bytes.length,
    digest: { kind: 'sha256', hex: sha256(bytes) },
  }));
  expect((await open()).files).toEqual(listed);
});

test('without a revision the hub chooses its default branch; with one it is sent', async () => {
  hub.publish('acme/tiny', files, 'master');
  hub.publish('acme/tiny', files, 'v1.0');
  await open();
  await open('v1.0');
  expect(hub.requests.map((seen) => new URL(seen.path, hub.url).searchParams.get('Revision'))).toEqual([null, 'v1.0']);
});

test('the newest commit is recorded in full though the hub tells only its beginning', async () => {
  const first = hub.publish('acme/tiny', files, 'master');
  expect((await open()).revision).toBe(first);
  const second = hub.publish('acme/tiny', { ...files, 'config.json': Buffer.from('{}') }, 'master');
  expect((await open()).revision).toBe(second);
  expect((await open(first)).revision).toBe(first);
});

test('each file is read from the commit it last changed in: a branch that moves meanwhile changes nothing', async () => {
  hub.publish('acme/tiny', files, 'master');
  hub.publish('acme/tiny', { ...files, 'config.json': Buffer.from('{"a":2}') }, 'master');
  const source = await open();
  hub.publish(
    'acme/tiny',
    { ...files, 'config.json': Buffer.from('{"a":3}'), 'model.safetensors': Buffer.from('others!') },
    'master',
  );
  expect(await read(source, 'config.json')).toBe('{"a":2}');
  expect(await read(source, 'model.safetensors')).toBe('weights');
  expect(await read(source, 'model.safetensors', 3)).toBe('ghts');
  expect(await read(source, 'sub/na me+1.txt')).toBe('x');
});

test('a revision that does not exist, which the hub answers by 200 without files, is not found', async () => {
  hub.publish('acme/tiny', files, 'master');
  await expect(open('main')).rejects.toMatchObject({
    code: 'not_found',
    message: expect.stringMatching(/no revision "main" of acme\/tiny.*usual branch is master/) as string,
  });
});

test('a model that is missing or private is not found, and the token opens a private one', async () => {
  await expect(open()).rejects.toMatchObject({ code: 'not_found', reason: 'HUB_NOT_FOUND' });
  hub.publish('acme/tiny', files, 'master');
  hub.protect('acme/tiny', 'private', 'secret');
  await expect(open('', 'wrong')).rejects.toMatchObject({ code: 'not_found' });
  expect(await read(await open('', 'secret'), 'model.safetensors')).toBe('weights');
  const [cdn] = hub.requests.filter((seen) => seen.server === 'cdn');
  expect(cdn!.headers).not.toHaveProperty('authorization');
  expect(cdn!.headers).not.toHaveProperty('cookie');
});

test.each([{ Path: '../evil.safetensors' }, { Path: 1 }, { Size: -1 }, { Size: 0.5 }])(
  'a listing with %j is refused',
  async (field) => {
    hub.publish('acme/tiny', files, 'master');
    hub.forge((entries) => [{ ...entries[0], ...field }, ...entries.slice(1)]);
    await expect(open()).rejects.toMatchObject({ code: 'data_loss', reason: 'HUB_ANSWER_INVALID' });
  },
);
