import { randomBytes } from 'node:crypto';
import net, { createServer, type Server } from 'node:net';
import { inspect } from 'node:util';
import { type S3Server, s3Missing, startS3 } from '@medmesh/testkit';
import { Client } from 'minio';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { testStoreContract } from '../test/store-contract.ts';
import { openObjectStore } from './index.ts';
import { openS3Bucket } from './s3-client.ts';
import { openS3Store } from './s3-store.ts';

const mebibyte = 1024 * 1024;
const missing = s3Missing();

describe.skipIf(missing !== null)(`an S3 store${missing === null ? '' : ` (skipped: ${missing})`}`, () => {
  let s3: S3Server;
  let client: Client;
  beforeAll(async () => {
    s3 = (await startS3())!;
    const { hostname, port } = new URL(s3.endpoint);
    client = new Client({
      endPoint: hostname,
      port: Number(port),
      useSSL: false,
      accessKey: s3.accessKey,
      secretKey: s3.secretKey,
      region: 'us-east-1',
    });
  });
  afterAll(async () => s3?.stop());

  let buckets = 0;
  const urlOf = (bucket: string, endpoint = s3.endpoint) => `s3://${bucket}?endpoint=${endpoint}&region=us-east-1`;
  const openNew = async (o: { endpoint?: string; uriRoots?: string[] } = {}) => {
    buckets += 1;
    const bucket = `store-${buckets}`;
    const store = await openObjectStore({
      url: urlOf(bucket, o.endpoint),
      accessKey: s3.accessKey,
      secretKey: s3.secretKey,
      uriRoots: o.uriRoots ?? [],
    });
    return { bucket, store };
  };
  const keysOf = async (bucket: string): Promise<string[]> =>
    (await Array.fromAsync(client.listObjectsV2(bucket, '', true) as AsyncIterable<{ name: string }>)).map(
      (item) => item.name,
    );
  const unfinishedOf = async (bucket: string): Promise<number> =>
    (await Array.fromAsync(client.listIncompleteUploads(bucket, '', true))).length;

  testStoreContract({
    async open() {
      const { bucket, store } = await openNew();
      return {
        store,
        keys: () => keysOf(bucket),
        unfinished: () => unfinishedOf(bucket),
        area: `s3://${bucket}/exports`,
      };
    },
  });

  async function* chunks(content: Buffer): AsyncGenerator<Uint8Array> {
    for (let at = 0; at < content.length; at += 100_000) yield content.subarray(at, at + 100_000);
  }

  test('a stream of unknown length goes up in several parts, and a large copy in several ranges', async () => {
    const bucket = await s3.bucket('limits');
    const limits = { partBytes: () => 5 * mebibyte, copyBytes: 6 * mebibyte };
    const home = await openS3Store(
      openS3Bucket({ url: urlOf(bucket), accessKey: s3.accessKey, secretKey: s3.secretKey }),
      { limits },
    );
    const content = randomBytes(17 * mebibyte + 1);
    const { digest, sizeBytes } = await home.putBlob(chunks(content));
    expect(sizeBytes).toBe(content.length);
    const [key] = await keysOf(bucket);
    expect(key).toBe(`blobs/sha256/${digest.slice(7, 9)}/${digest.slice(7)}`);
    // The etag of a multipart object ends in its number of parts: three ranges of 6 MiB.
    expect((await client.statObject(bucket, key!)).etag).toMatch(/-3$/);
    expect(Buffer.concat(await Array.fromAsync(home.readBlob(digest))).equals(content)).toBe(true);
    expect(await unfinishedOf(bucket)).toBe(0);

    const { digest: known } = await home.putBlob(content.subarray(1), {});
    expect((await client.statObject(bucket, `blobs/sha256/${known.slice(7, 9)}/${known.slice(7)}`)).etag).toMatch(
      /-4$/,
    );
  });

  test('damaged content is found when it is read', async () => {
    const { bucket, store } = await openNew();
    const { digest } = await store.putBlob(Buffer.from('content'));
    await client.putObject(bucket, `blobs/sha256/${digest.slice(7, 9)}/${digest.slice(7)}`, Buffer.from('CONTENT'));
    await expect(Array.fromAsync(store.readBlob(digest))).rejects.toMatchObject({
      code: 'data_loss',
      reason: 'ARTIFACT_CORRUPT',
    });
  });

  test('an upload by a signed URL is read by its URI, and a tampered one is refused', async () => {
    const { store } = await openNew();
    const { url, uri } = await store.presignPut('rows/one.jsonl', 60);
    expect((await fetch(url, { method: 'PUT', body: 'row' })).status).toBe(200);
    expect(Buffer.concat(await Array.fromAsync(store.readUri(uri))).toString()).toBe('row');
    expect((await fetch(url.replace('one.jsonl', 'two.jsonl'), { method: 'PUT', body: 'row' })).status).toBe(403);
    for (const key of ['', '../x', '/x', 'a//b', 'a?b', 'a b', '.hidden']) {
      await expect(store.presignPut(key, 60)).rejects.toMatchObject({ code: 'invalid_argument' });
    }
    await expect(store.presignPut('x', 0)).rejects.toMatchObject({ code: 'invalid_argument' });
  });

  test('URIs reach the allowed prefixes only, never the blobs', async () => {
    const foreign = await s3.bucket('foreign');
    await client.putObject(foreign, 'models/a/config.json', Buffer.from('{}'));
    await client.putObject(foreign, 'models-private/config.json', Buffer.from('{}'));
    const { bucket, store } = await openNew({ uriRoots: [`s3://${foreign}/models`] });
    const { digest } = await store.putBlob(Buffer.from('content'));
    expect((await Array.fromAsync(store.listUri(`s3://${foreign}/models/`))).map((entry) => entry.path)).toEqual([
      'a/config.json',
    ]);
    const refused = [
      `s3://${foreign}/models-private/config.json`,
      `s3://${bucket}/blobs/sha256/${digest.slice(7, 9)}/${digest.slice(7)}`,
      `s3://${bucket}/`,
    ];
    for (const uri of refused) {
      await expect(store.uriSize(uri)).rejects.toMatchObject({
        code: 'permission_denied',
        reason: 'URI_NOT_ALLOWED',
      });
    }
    await expect(store.uriSize(`s3://${foreign}/models/../models-private/config.json`)).rejects.toMatchObject({
      reason: 'URI_INVALID',
    });
  });

  test('a read goes on by range when its connection breaks, and the bytes are right', async () => {
    const proxy = await startBreakingProxy(s3.endpoint, 3 * mebibyte);
    try {
      const { store } = await openNew({ endpoint: proxy.endpoint });
      const content = randomBytes(10 * mebibyte);
      const { digest } = await store.putBlob(content);
      expect(Buffer.concat(await Array.fromAsync(store.readBlob(digest))).equals(content)).toBe(true);
      expect(proxy.broken()).toBeGreaterThanOrEqual(3);
    } finally {
      proxy.server.close();
    }
  });

  test('a store that is down at the start is reported in one line that tells what could not be done', async () => {
    await expect(
      openObjectStore({ url: urlOf('nowhere', 'http://127.0.0.1:1'), accessKey: 'a', secretKey: 'b', patienceMs: 0 }),
    ).rejects.toMatchObject({
      code: 'unavailable',
      reason: 'STORE_UNAVAILABLE',
      message: 'the object store does not answer (ECONNREFUSED); could not open the bucket nowhere',
    });
  });

  test('refused credentials are reported without any credential in the error', async () => {
    const accessKey = s3.accessKey;
    const secretKey = 'canary-secret-0123456789';
    const errors = [
      await openObjectStore({ url: urlOf('refused'), accessKey, secretKey }).catch((error: unknown) => error),
      await openObjectStore({ url: urlOf('nowhere', 'http://127.0.0.1:1'), accessKey, secretKey, patienceMs: 0 }).catch(
        (error: unknown) => error,
      ),
    ];
    expect(errors[0]).toMatchObject({ code: 'permission_denied', reason: 'STORE_CREDENTIALS_REFUSED' });
    for (const error of errors) {
      const everything = inspect(error, { depth: 20, showHidden: true }) + JSON.stringify(error);
      expect(everything).not.toContain(secretKey);
      expect(everything).not.toContain(accessKey);
      expect(everything).not.toMatch(/signature=/i);
    }
    const { store } = await openNew();
    expect(inspect(store, { depth: 20 })).not.toContain(s3.secretKey);
  });

  test('a folder is not a bucket', async () => {
    await expect(openObjectStore({ url: `s3://bucket/folder?endpoint=${s3.endpoint}` })).rejects.toMatchObject({
      reason: 'STORE_URL_INVALID',
    });
    await expect(openObjectStore({ url: 's3://bucket?endpoint=nonsense' })).rejects.toMatchObject({
      reason: 'STORE_URL_INVALID',
    });
  });

  // Last: after a kill this server takes half a minute to make a bucket.
  test('operations wait for a store that was killed and go on when it is back; one that is not waited for gives up', async () => {
    const { store } = await openNew();
    const content = randomBytes(20 * mebibyte);
    let killed: Promise<void> | undefined;
    async function* source(): AsyncGenerator<Uint8Array> {
      for (let at = 0; at < content.length; at += mebibyte) {
        if (at === 12 * mebibyte) {
          await s3.kill();
          killed = new Promise((resolve) => setTimeout(resolve, 700)).then(() => s3.restart());
        }
        yield content.subarray(at, at + mebibyte);
      }
    }
    const { digest } = await store.putBlob(source());
    await killed;
    expect(Buffer.concat(await Array.fromAsync(store.readBlob(digest))).equals(content)).toBe(true);

    await s3.kill();
    try {
      await expect(store.hasBlob(digest, { signal: AbortSignal.timeout(500) })).rejects.toMatchObject({
        name: 'TimeoutError',
      });
    } finally {
      await s3.restart();
    }
  });
});

/** Forwards to an endpoint, and cuts every connection once it has carried this many bytes of answers. */
async function startBreakingProxy(
  target: string,
  bytes: number,
): Promise<{ endpoint: string; server: Server; broken(): number }> {
  let broken = 0;
  const { hostname, port } = new URL(target);
  const server = createServer((near) => {
    const far = net.connect(Number(port), hostname);
    let carried = 0;
    near.pipe(far);
    far.on('data', (chunk: Buffer) => {
      carried += chunk.length;
      if (carried < bytes) {
        near.write(chunk);
        return;
      }
      broken += 1;
      near.destroy();
      far.destroy();
    });
    for (const [socket, other] of [
      [near, far],
      [far, near],
    ] as const) {
      socket.on('error', () => other.destroy());
      socket.on('close', () => other.destroy());
    }
  });
  await new Promise<void>((resolve) => {
    server.listen(0, '127.0.0.1', resolve);
  });
  const address = server.address() as net.AddressInfo;
  return { endpoint: `http://127.0.0.1:${address.port}`, server, broken: () => broken };
}
