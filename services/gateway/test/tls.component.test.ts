import { createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { request } from 'node:https';
import { join, resolve } from 'node:path';
import { inference } from '@medmesh/proto';
import { createClient, Metadata, openChannel } from '@medmesh/rpc';
import { freePort, repositoryRoot, runProcess, spawnProcess, tempDir } from '@medmesh/testkit';
import { expect, test } from 'vitest';
import { backends } from '../src/routes.ts';

const main = resolve(import.meta.dirname, '../src/main.ts');

async function startGateway(env: Record<string, string>) {
  const portFile = join(tempDir('gateway'), 'ports.json');
  // Nothing listens behind it: what is tested happens before.
  const behind = Object.fromEntries(await Promise.all(backends.map(async (b) => [b, `127.0.0.1:${await freePort()}`])));
  const child = await spawnProcess({
    command: process.execPath,
    args: ['--import', `${repositoryRoot}/libs/telemetry/src/register.ts`, main],
    cwd: resolve(import.meta.dirname, '..'),
    env: { ...behind, GRPC_PORT: '0', PORT_FILE: portFile, ...env },
    ready: /gateway is ready/,
  });
  return { child, ports: JSON.parse(await readFile(portFile, 'utf8')) as { grpc: number; http: number } };
}

test('gRPC and HTTP speak TLS with the same certificate, and a client without its authority is turned away', async () => {
  const dir = tempDir('tls');
  const [cert, key, keys] = ['cert.pem', 'key.pem', 'keys.json'].map((name) => join(dir, name)) as [
    string,
    string,
    string,
  ];
  await runProcess({
    command: 'openssl',
    args: ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '1'].concat([
      '-keyout',
      key,
      '-out',
      cert,
      '-subj',
      '/CN=localhost',
      '-addext',
      'subjectAltName=IP:127.0.0.1',
    ]),
  });
  const sha256 = createHash('sha256').update('a-key').digest('hex');
  writeFileSync(keys, JSON.stringify({ keys: [{ tenant: 'a', sha256 }] }));
  const { child, ports } = await startGateway({ TLS_CERT_FILE: cert, TLS_PRIVATE_FILE: key, API_KEYS_FILE: keys });

  const count = async (caFile: string | undefined, metadata = Metadata()) => {
    const channel = openChannel(`127.0.0.1:${ports.grpc}`, { tls: caFile === undefined ? undefined : { caFile } });
    const client = createClient(inference.InferenceServiceDefinition, channel, { unaryDeadlineMs: 3_000, metadata });
    return client
      .cancel({ requestId: 'x' }, { retry: false })
      .catch((e: unknown) => e)
      .finally(() => channel.close());
  };
  expect(await count(undefined)).toMatchObject({ code: 'unavailable' });
  expect(await count(cert)).toMatchObject({ reason: 'API_KEY_MISSING' });
  expect(await count(cert, Metadata({ authorization: 'Bearer a-key' }))).toMatchObject({
    reason: 'BACKEND_UNAVAILABLE',
  });

  const get = (ca: Buffer | undefined) =>
    new Promise<number | string>((done) => {
      const call = request(
        { host: '127.0.0.1', port: ports.http, path: '/health', ...(ca ? { ca } : {}) },
        (response) => {
          response.resume();
          done(response.statusCode ?? 0);
        },
      );
      call.once('error', (error: NodeJS.ErrnoException) => done(error.code ?? ''));
      call.end();
    });
  expect(await get(readFileSync(cert))).toBe(200);
  expect(await get(undefined)).toBe('DEPTH_ZERO_SELF_SIGNED_CERT');
  expect((await child.stop()).code).toBe(0);
});

test.each([
  ['{"keys": [{"tenant": "Ward 3", "sha256": "0"}]}', 'tenant'],
  ['{"keys": ', 'cannot be read as JSON'],
])('a key file %s stops the start, saying why', async (text, why) => {
  const path = join(tempDir('keys'), 'keys.json');
  writeFileSync(path, text);
  await expect(startGateway({ API_KEYS_FILE: path })).rejects.toThrow(why);
});
