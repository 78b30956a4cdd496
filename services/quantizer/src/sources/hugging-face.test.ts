import { afterEach, beforeEach, expect, test } from 'vitest';
import { startHub, type TestHub } from '../../test/hub-server.ts';
import type { HubAccess } from './hub-http.ts';
import { openHuggingFace } from './hugging-face.ts';

let hub: TestHub;
beforeEach(async () => {
  hub = await startHub();
});
afterEach(() => hub.close());

const access = (token?: string): HubAccess => ({
  credentials: token === undefined ? {} : { authorization: `Bearer ${token}` },
  signal: new AbortController().signal,
  patience: { attempts: 3, firstPauseMs: 5, stallMs: 500 },
});
const open = (revision = '', token?: string) => openHuggingFace(hub.url, 'acme/tiny', revision, access(token));
const read = async (source: Awaited<ReturnType<typeof open>>, path: string) =>
  Buffer.concat(await Array.fromAsync(source.read(path, 0, new AbortController().signal))).toString();

const files = {
  'config.json': Buffer.from('{"a":1}'),
  'model.safetensors': Buffer.from('weights'),
  'sub/na me#1.txt': Buffer.from('x'),
};

test('files come with the digest that the hub knows them by: SHA-256 of large ones, git’s of small ones', async () => {
  hub.publish('acme/tiny', files);
  expect((await open()).files).toEqual([
    // From `git hash-object` and `sha256sum`.
    {
      path: 'config.json',
      sizeBytes: 7,
      digest: { kind: 'git-sha1', hex: 'daa5053ecf5f9a37b2de733d0751cc1ab53ac010' },
    },
    {
      path: 'model.safetensors',
      sizeBytes: 7,
      digest: { kind: 'sha256', hex: '9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c' },
    },
    {
      path: 'sub/na me#1.txt',
      sizeBytes: 1,
      digest: { kind: 'git-sha1', hex: 'c1b0730e0133447badcfd47fd144e254807b06e1' },
    },
  ]);
});

test('the revision is resolved once: a branch that moves meanwhile changes nothing', async () => {
  const first = hub.publish('acme/tiny', files);
  const source = await open();
  hub.publish('acme/tiny', {
    ...files,
    'config.json': Buffer.from('{"a":2}'),
    'model.safetensors': Buffer.from('others!'),
  });
  expect(source.revision).toBe(first);
  expect(await read(source, 'config.json')).toBe('{"a":1}');
  expect(await read(source, 'model.safetensors')).toBe('weights');
});

test('a commit, a tag and a branch with a slash can be asked for', async () => {
  const first = hub.publish('acme/tiny', files);
  const second = hub.publish('acme/tiny', { ...files, 'config.json': Buffer.from('{}') }, 'refs/pr/1');
  expect((await open(first)).revision).toBe(first);
  expect((await open('refs/pr/1')).revision).toBe(second);
  await expect(open('no-such-branch')).rejects.toMatchObject({ code: 'not_found', reason: 'HUB_NOT_FOUND' });
});

test('a listing of several pages is read to its end', async () => {
  const many = Object.fromEntries(Array.from({ length: 7 }, (_, i) => [`file-${i}.txt`, Buffer.from(String(i))]));
  hub.publish('acme/tiny', many);
  hub.pageSize = 3;
  expect((await open()).files.map((file) => file.path)).toEqual(Object.keys(many));
  expect(hub.requests.filter((seen) => seen.path.includes('/tree/'))).toHaveLength(3);
});

test('paths are encoded, and a large file is read from where the hub redirects, without the token', async () => {
  hub.publish('acme/tiny', files);
  hub.protect('acme/tiny', 'private', 'secret');
  const source = await open('', 'secret');
  expect(await read(source, 'sub/na me#1.txt')).toBe('x');
  expect(await read(source, 'model.safetensors')).toBe('weights');
  const [cdn] = hub.requests.filter((seen) => seen.server === 'cdn');
  expect(cdn).toMatchObject({ status: 200, file: 'model.safetensors' });
  expect(cdn!.headers).not.toHaveProperty('authorization');
  for (const seen of hub.requests.filter(({ server }) => server === 'hub'))
    expect(seen.headers.authorization).toBe('Bearer secret');
});

test('a model that is missing, private or gated says that a token may help', async () => {
  await expect(open()).rejects.toMatchObject({
    code: 'permission_denied',
    message: expect.stringMatching(/does not exist, or needs an access token/) as string,
  });
  hub.publish('acme/tiny', files);
  hub.protect('acme/tiny', 'gated', 'secret');
  const source = await open();
  await expect(read(source, 'config.json')).rejects.toMatchObject({
    code: 'permission_denied',
    reason: 'HUB_CREDENTIALS_REFUSED',
  });
  expect(await read(await open('', 'secret'), 'config.json')).toBe('{"a":1}');
  hub.protect('acme/tiny', 'private', 'secret');
  await expect(open('', 'wrong')).rejects.toMatchObject({ code: 'not_found' });
});

test('a hub that is out of order for a moment is asked again', async () => {
  hub.publish('acme/tiny', files);
  hub.fail(503, 2);
  expect((await open()).files).toHaveLength(3);
});

test.each(['../evil.safetensors', '/etc/passwd', 'a//b', 'a\\b', 'a\u0000b', ''])(
  'a listing with the path %j is refused',
  async (path) => {
    hub.publish('acme/tiny', files);
    hub.forge((entries) => [...entries, { type: 'file', oid: '0'.repeat(40), size: 1, path }]);
    await expect(open()).rejects.toMatchObject({ code: 'data_loss', reason: 'HUB_ANSWER_INVALID' });
  },
);

test.each([
  ['a size that is no number', { size: 'large' }],
  ['a negative size', { size: -1 }],
  ['a path that is no text', { path: 7 }],
])('a listing with %s is refused', async (_, field) => {
  hub.publish('acme/tiny', files);
  hub.forge((entries) => entries.map((entry) => ({ ...entry, ...field })));
  await expect(open()).rejects.toMatchObject({ code: 'data_loss', reason: 'HUB_ANSWER_INVALID' });
});

test('a listing that names a file twice is refused', async () => {
  hub.publish('acme/tiny', files);
  hub.forge((entries) => [...entries, entries[0]!]);
  await expect(open()).rejects.toMatchObject({ message: expect.stringContaining('lists a file twice') as string });
});
