import type { ObjectStore } from '@medmesh/objects';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { startHub, type TestHub } from '../../test/hub-server.ts';
import { configSchema, type QuantizerConfig } from '../config.ts';
import { checkOrigin, openSource } from './open-source.ts';

let hub: TestHub;
let other: TestHub;
let config: QuantizerConfig;
// No import here reads a folder.
const store = {} as ObjectStore;
const { signal } = new AbortController();
const origin = (uri: string, fields: { revision?: string; hubUrl?: string } = {}) => ({
  uri,
  revision: '',
  hubUrl: '',
  ...fields,
});

beforeAll(async () => {
  hub = await startHub();
  other = await startHub();
  for (const server of [hub, other]) {
    server.publish('acme/tiny', { 'config.json': Buffer.from('{}') }, 'main');
    server.publish('acme/tiny', { 'config.json': Buffer.from('{}') }, 'master');
  }
  config = configSchema.parse({
    OBJECT_STORE_URL: 'file:///nowhere',
    HUGGING_FACE_URL: `${hub.url}/`,
    MODELSCOPE_URL: hub.url,
    HUGGING_FACE_TOKEN: 'hf-secret',
    MODELSCOPE_TOKEN: 'ms-secret',
    HUB_URLS_ALLOWED: `,${other.url}/`,
  });
});
afterAll(async () => {
  await hub.close();
  await other.close();
});
beforeEach(() => {
  hub.requests.length = 0;
  other.requests.length = 0;
});

test.each([
  ['hf://acme', {}, /uri/],
  ['hf://acme/tiny/../../x', {}, /uri/],
  ['hf://acme/..', {}, /uri/],
  ['https://example.org/acme/tiny', {}, /uri/],
  ['file://relative/folder', {}, /uri/],
  ['file:///folder', { revision: 'main' }, /revision/],
  ['s3://bucket/prefix', { hubUrl: 'http://127.0.0.1:1' }, /hub_url/],
  ['hf://acme/tiny', { revision: '../../secret' }, /revision/],
  ['hf://acme/tiny', { revision: 'main?x=1' }, /revision/],
])('the origin %s %j is refused by the field that is wrong, without contacting anything', (uri, fields, message) => {
  expect(() => checkOrigin(config, origin(uri, fields))).toThrowError(message);
});

test.each(['http://127.0.0.1:9', 'http://169.254.169.254', '/', 'file:///etc'])(
  'a hub_url that the operator does not allow (%s) is refused',
  (hubUrl) => {
    expect(() => checkOrigin(config, origin('hf://acme/tiny', { hubUrl }))).toThrowError(
      expect.objectContaining({ code: 'permission_denied', reason: 'HUB_NOT_ALLOWED' }),
    );
  },
);

test('each hub is given its own token', async () => {
  await openSource({ config, store }, origin('hf://acme/tiny'), signal);
  expect(hub.requests.map((seen) => seen.headers.authorization)).toEqual(['Bearer hf-secret', 'Bearer hf-secret']);
  hub.requests.length = 0;
  await openSource({ config, store }, origin('modelscope://acme/tiny'), signal);
  expect(hub.requests).toHaveLength(1);
  expect(hub.requests[0]!.headers).toMatchObject({
    authorization: 'Bearer ms-secret',
    cookie: 'm_session_id=ms-secret',
  });
});

test('an allowed other hub is contacted instead of the own one, and is given no token', async () => {
  await openSource({ config, store }, origin('hf://acme/tiny', { hubUrl: other.url }), signal);
  await openSource({ config, store }, origin('modelscope://acme/tiny', { hubUrl: other.url }), signal);
  expect(hub.requests).toEqual([]);
  expect(other.requests).toHaveLength(3);
  for (const { headers } of other.requests) {
    expect(headers.authorization).toBeUndefined();
    expect(headers.cookie).toBeUndefined();
  }
});

test('addresses of hubs other than http and https are refused when the process starts', () => {
  const env = { OBJECT_STORE_URL: 'file:///nowhere' };
  expect(configSchema.safeParse({ ...env, HUGGING_FACE_URL: 'ftp://hub' }).success).toBe(false);
  expect(configSchema.safeParse({ ...env, HUB_URLS_ALLOWED: 'http://a,b' }).success).toBe(false);
  expect(configSchema.safeParse({ ...env, HUB_URLS_ALLOWED: 'http://a,https://b' }).success).toBe(true);
});
