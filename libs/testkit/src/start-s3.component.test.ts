import { Client } from 'minio';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type S3Server, s3Missing, startS3 } from './start-s3.ts';

const missing = s3Missing();
if (missing) console.log(`skipped: ${missing}`);

let s3: S3Server;
let other: S3Server;
const clientOf = (server: S3Server, secretKey = server.secretKey) =>
  new Client({
    endPoint: '127.0.0.1',
    port: Number(new URL(server.endpoint).port),
    useSSL: false,
    accessKey: server.accessKey,
    secretKey,
  });

beforeAll(async () => {
  if (!missing) [s3, other] = (await Promise.all([startS3(), startS3()])) as [S3Server, S3Server];
});
afterAll(async () => void (await Promise.all([s3?.stop(), other?.stop()])));

test.skipIf(missing)('an object comes back as it was put, from its own server only', async () => {
  const bucket = await s3.bucket('rows');
  await clientOf(s3).putObject(bucket, 'a/b', Buffer.from('hello'));
  expect(Buffer.concat(await Array.fromAsync(await clientOf(s3).getObject(bucket, 'a/b'))).toString()).toBe('hello');
  expect(await clientOf(other).bucketExists(bucket)).toBe(false);
});

test.skipIf(missing)('a wrong secret is refused', async () => {
  const bucket = await s3.bucket('rows');
  await expect(clientOf(s3, 'wrong').putObject(bucket, 'a', 'b')).rejects.toThrow();
});

test.skipIf(missing)('objects survive a kill of the front end', async () => {
  const bucket = await s3.bucket('rows');
  await clientOf(s3).putObject(bucket, 'kept', 'still here');
  await s3.kill();
  await expect(fetch(s3.endpoint)).rejects.toThrow();
  await s3.restart();
  expect((await clientOf(s3).statObject(bucket, 'kept')).size).toBe(10);
});
