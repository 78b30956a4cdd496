import { createHash } from 'node:crypto';
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { request } from 'node:https';
import { join, resolve } from 'node:path';
import { inference } from '@medmesh/proto';
import { createClient, Metadata, openChannel } from '@medmesh/rpc';
import { freePort, repositoryRoot, runProcess, spawnProcess, tempDir, waitFor } from '@medmesh/testkit';
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

test('with a client authority, gRPC and HTTP let in its clients alone, and take up renewed files without a restart', async () => {
  const dir = tempDir('mutual-tls');
  const file = (name: string) => join(dir, name);
  const openssl = (...args: string[]) => runProcess({ command: 'openssl', args, cwd: dir });
  const ec = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
  const authority = (name: string) =>
    openssl(
      'req',
      '-x509',
      ...ec,
      '-days',
      '1',
      '-keyout',
      `${name}.key`,
      '-out',
      `${name}.crt`,
      '-subj',
      `/CN=${name}`,
    );
  const certificate = async (name: string, by: string) => {
    await openssl('req', ...ec, '-keyout', `${name}.key`, '-out', `${name}.csr`, '-subj', `/CN=${name}`);
    writeFileSync(file(`${name}.ext`), 'subjectAltName=IP:127.0.0.1');
    const signed = ['-CA', `${by}.crt`, '-CAkey', `${by}.key`, '-CAcreateserial', '-extfile', `${name}.ext`];
    await openssl('x509', '-req', '-in', `${name}.csr`, ...signed, '-days', '1', '-out', `${name}.crt`);
  };
  await authority('ours');
  await authority('theirs');
  for (const [name, by] of [
    ['server', 'ours'],
    ['renewed', 'theirs'],
    ['client', 'ours'],
    ['stranger', 'theirs'],
  ] as const)
    await certificate(name, by);
  const use = (name: string, clients: string) => {
    copyFileSync(file(`${name}.crt`), file('used.crt'));
    copyFileSync(file(`${name}.key`), file('used.key'));
    copyFileSync(file(`${clients}.crt`), file('clients.crt'));
  };
  use('server', 'ours');
  const { child, ports } = await startGateway({
    TLS_CERT_FILE: file('used.crt'),
    TLS_PRIVATE_FILE: file('used.key'),
    TLS_CLIENT_CA_FILE: file('clients.crt'),
    TLS_RELOAD_MS: '20',
  });

  /** Whether gRPC and HTTP answer a client that trusts `ca` and shows the certificate of `name`. */
  const answers = async (ca: string, name: string | undefined): Promise<boolean[]> => {
    const own = name === undefined ? {} : { certFile: file(`${name}.crt`), keyFile: file(`${name}.key`) };
    const channel = openChannel(`127.0.0.1:${ports.grpc}`, { tls: { caFile: file(`${ca}.crt`), ...own } });
    const { cancel } = createClient(inference.InferenceServiceDefinition, channel, { unaryDeadlineMs: 3_000 });
    const reason = await cancel({ requestId: 'x' }, { retry: false })
      .catch((e: unknown) => (e as { reason?: string }).reason)
      .finally(() => channel.close());
    const pems = { ca: readFileSync(file(`${ca}.crt`)), ...(name === undefined ? {} : pair(name)) };
    const status = await new Promise((done) => {
      const call = request(
        { host: '127.0.0.1', port: ports.http, path: '/health', agent: false, ...pems },
        (response) => {
          response.resume();
          done(response.statusCode);
        },
      );
      call.once('error', done);
      call.end();
    });
    // The gateway is reached; what stands behind it is not there.
    return [reason === 'BACKEND_UNAVAILABLE', status === 200];
  };
  const pair = (name: string) => ({ cert: readFileSync(file(`${name}.crt`)), key: readFileSync(file(`${name}.key`)) });

  expect(await answers('ours', 'client')).toEqual([true, true]);
  expect(await answers('ours', 'stranger')).toEqual([false, false]);
  expect(await answers('ours', undefined)).toEqual([false, false]);
  expect(await answers('theirs', 'client')).toEqual([false, false]);

  // The command, with options and with variables in their place.
  const medmesh = async (options: string[], env: Record<string, string> = {}) => {
    const command = join(repositoryRoot, 'medmesh');
    const args = ['--json', '--address', `127.0.0.1:${ports.grpc}`, ...options, 'model', 'list'];
    const running = await spawnProcess({ command, args, env });
    const { code } = await running.exited;
    return { exit: code, ...(JSON.parse(running.stderr()) as { error: { reason: string; message: string } }).error };
  };
  const [ca, shown, secret] = [file('ours.crt'), file('client.crt'), file('client.key')];
  const variables = { MEDMESH_TLS_CA: ca, MEDMESH_TLS_CERT: shown, MEDMESH_TLS_KEY: secret };
  const outcomes = await Promise.all([
    medmesh(['--tls-ca', ca, '--tls-cert', shown, '--tls-key', secret]),
    medmesh([], variables),
    medmesh(['--tls-ca', ca, '--tls-cert', file('stranger.crt'), '--tls-key', file('stranger.key')]),
    medmesh(['--tls-ca', file('theirs.crt')], { MEDMESH_TLS_CERT: shown, MEDMESH_TLS_KEY: secret }),
    medmesh(['--tls-ca', ca, '--tls-cert', shown]),
    medmesh(['--tls-ca', ca, '--tls-cert', shown, '--tls-key', file('stranger.key')]),
    medmesh(['--tls-ca', secret]),
  ]);
  expect(outcomes).toMatchObject([
    { exit: 3, reason: 'BACKEND_UNAVAILABLE' },
    { exit: 3, reason: 'BACKEND_UNAVAILABLE' },
    // The connection may end before its last word has come.
    { exit: 3, reason: expect.stringMatching(/^(TLS_REFUSED|UNAVAILABLE)$/) },
    { exit: 3, reason: 'TLS_REFUSED', message: expect.stringContaining('no authority that this client trusts') },
    { exit: 2, reason: 'TLS_CONFIG_INVALID', message: expect.stringContaining('--tls-key is missing') },
    { exit: 2, reason: 'TLS_FILE_INVALID', message: expect.stringContaining('are no certificate and its key') },
    { exit: 2, reason: 'TLS_FILE_INVALID', message: `${secret} holds no certificate in PEM` },
  ]);
  await waitFor(async () => (await medmesh(['--tls-ca', ca])).message.includes('asks for a client certificate'));

  use('renewed', 'theirs');
  // The three are not replaced at one moment: a server may take up some of them, and the rest when it looks again.
  await waitFor(async () => (await answers('theirs', 'stranger')).every(Boolean), {
    what: 'gRPC and HTTP to take up the renewed files',
  });
  const taken = child.lines().filter((line) => line.includes('new connections use them'));
  expect(taken.length).toBeGreaterThanOrEqual(2);
  expect(await answers('theirs', 'client')).toEqual([false, false]);
  expect(await answers('ours', 'client')).toEqual([false, false]);
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
