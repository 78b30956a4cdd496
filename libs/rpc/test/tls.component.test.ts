import { execFileSync } from 'node:child_process';
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { findProgram, waitFor } from '@medmesh/testkit';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createClient, openChannel } from '../src/index.ts';
import { EchoServiceDefinition, rejection, startTestServer, type TestServer } from './echo-service.ts';

const openssl = findProgram('openssl');

describe.skipIf(openssl === null)('TLS (needs openssl)', () => {
  let dir: string;
  const file = (name: string) => join(dir, name);
  const run = (...args: string[]) => execFileSync(openssl as string, args, { stdio: 'pipe', cwd: dir });

  /** An authority of its own. */
  function makeAuthority(name: string): void {
    run(
      'req',
      '-x509',
      '-newkey',
      'ec',
      '-pkeyopt',
      'ec_paramgen_curve:prime256v1',
      '-nodes',
      '-days',
      '2',
      '-subj',
      `/CN=${name}`,
      '-keyout',
      `${name}.key`,
      '-out',
      `${name}.crt`,
    );
  }

  /** A certificate for `localhost` and 127.0.0.1, signed by the authority. */
  function makeCertificate(name: string, authority: string): void {
    writeFileSync(file(`${name}.ext`), 'subjectAltName=DNS:localhost,DNS:inference.test,IP:127.0.0.1');
    run(
      'req',
      '-newkey',
      'ec',
      '-pkeyopt',
      'ec_paramgen_curve:prime256v1',
      '-nodes',
      '-subj',
      `/CN=${name}`,
      '-keyout',
      `${name}.key`,
      '-out',
      `${name}.csr`,
    );
    run(
      'x509',
      '-req',
      '-in',
      `${name}.csr`,
      '-CA',
      `${authority}.crt`,
      '-CAkey',
      `${authority}.key`,
      '-CAcreateserial',
      '-days',
      '2',
      '-extfile',
      `${name}.ext`,
      '-out',
      `${name}.crt`,
    );
  }

  const echo = { say: async ({ text }: { text: string }) => ({ text }) };
  const pair = (name: string) => ({ certFile: file(`${name}.crt`), keyFile: file(`${name}.key`) });
  const say = (server: TestServer, tls?: Parameters<typeof openChannel>[1]) => {
    const channel = openChannel(server.address, tls);
    return createClient(EchoServiceDefinition, channel)
      .say({ text: 'private' }, { deadlineMs: 3000 })
      .finally(() => channel.close());
  };

  beforeAll(() => {
    dir = mkdtempSync(join(tmpdir(), 'medmesh-tls-'));
    makeAuthority('ours');
    makeAuthority('theirs');
    makeCertificate('server', 'ours');
    makeCertificate('client', 'ours');
    makeCertificate('stranger', 'theirs');
  });
  afterAll(() => rmSync(dir, { recursive: true }));

  test('a client that trusts the authority is answered; one that trusts another, or speaks plain text, is not', async () => {
    const server = await startTestServer(echo, { tls: pair('server') });
    expect(await say(server, { tls: { caFile: file('ours.crt') } })).toEqual({ text: 'private' });
    expect(await say(server, { tls: { caFile: file('ours.crt'), serverName: 'inference.test' } })).toEqual({
      text: 'private',
    });
    expect(await rejection(say(server, { tls: { caFile: file('ours.crt'), serverName: 'other.test' } }))).toMatchObject(
      { code: 'unavailable' },
    );
    expect(await rejection(say(server, { tls: { caFile: file('theirs.crt') } }))).toMatchObject({
      code: 'unavailable',
    });
    expect(await rejection(say(server))).toMatchObject({ code: 'unavailable' });
    await server.stop();
  });

  test('with a client authority, only clients it has signed are let in', async () => {
    const server = await startTestServer(echo, { tls: { ...pair('server'), clientCaFile: file('ours.crt') } });
    expect(await say(server, { tls: { caFile: file('ours.crt'), ...pair('client') } })).toEqual({ text: 'private' });
    expect(await rejection(say(server, { tls: { caFile: file('ours.crt'), ...pair('stranger') } }))).toMatchObject({
      code: 'unavailable',
    });
    expect(await rejection(say(server, { tls: { caFile: file('ours.crt') } }))).toMatchObject({ code: 'unavailable' });
    await server.stop();
  });

  test('a renewed certificate is used without a restart, and files that do not belong together change nothing', async () => {
    const used = { certFile: file('used.crt'), keyFile: file('used.key') };
    const use = (cert: string, key = cert) => {
      copyFileSync(file(`${cert}.crt`), used.certFile);
      copyFileSync(file(`${key}.key`), used.keyFile);
    };
    const trusts = async (authority: string): Promise<boolean> => {
      const answered = say(server, { tls: { caFile: file(`${authority}.crt`) } });
      return answered.then(
        () => true,
        () => false,
      );
    };
    use('server');
    const server = await startTestServer(echo, { tls: { ...used, reloadMs: 20 } });
    expect([await trusts('ours'), await trusts('theirs')]).toEqual([true, false]);
    use('stranger', 'client');
    await waitFor(() => server.logLines.some((line) => line.includes('cannot be used')));
    expect([await trusts('ours'), await trusts('theirs')]).toEqual([true, false]);
    use('stranger');
    await waitFor(() => server.logLines.some((line) => line.includes('new connections use them')));
    expect([await trusts('ours'), await trusts('theirs')]).toEqual([false, true]);
    await server.stop();
  });

  test('a file that cannot be read, or half a client pair, is refused with its name', async () => {
    const missing = { certFile: '/nowhere/tls.crt', keyFile: file('server.key') };
    expect(await rejection(startTestServer(echo, { tls: missing }))).toMatchObject({
      code: 'failed_precondition',
      message: expect.stringContaining('/nowhere/tls.crt'),
    });
    expect(() => openChannel('localhost:1', { tls: { certFile: file('client.crt') } })).toThrow(
      /both certFile and keyFile/,
    );
  });
});
