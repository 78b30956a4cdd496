import { X509Certificate } from 'node:crypto';
import { createSecureContext } from 'node:tls';
import { ChannelCredentials, ServerCredentials } from '@grpc/grpc-js';
import { Failure } from '@medmesh/errors';
import type { Logger } from '@medmesh/log';
import { reloadingCredentials } from './reloading-tls.ts';
import { readPem, type ServerTls } from './tls-files.ts';

/** PEM files of a client. Without `caFile` the system's authorities are trusted. */
export type ClientTls = {
  readonly caFile?: string | undefined;
  readonly certFile?: string | undefined;
  readonly keyFile?: string | undefined;
  /** Checked against the server's certificate in place of the address's host. */
  readonly serverName?: string | undefined;
};

/** Files that cannot be used are a Failure at the start; renewed ones are taken up by the connections that come after. */
export function serverCredentials(tls: ServerTls | undefined, log: Logger): ServerCredentials {
  if (tls === undefined) return ServerCredentials.createInsecure();
  return reloadingCredentials(tls, log);
}

/**
 * Read once: a client with renewed files opens a new channel. Failure `invalid_argument` TLS_CONFIG_INVALID for half a certificate, `failed_precondition`
 * naming the files that cannot be read, are no PEM, or do not belong together.
 */
export function channelCredentials(tls: ClientTls | undefined): ChannelCredentials {
  if (tls === undefined) return ChannelCredentials.createInsecure();
  const { caFile, certFile, keyFile } = tls;
  if ((certFile === undefined) !== (keyFile === undefined)) {
    throw new Failure('invalid_argument', 'a client certificate needs both certFile and keyFile', {
      reason: 'TLS_CONFIG_INVALID',
    });
  }
  const pem = (path: string | undefined) => (path === undefined ? null : readPem(path));
  const [ca, key, cert] = [pem(caFile), pem(keyFile), pem(certFile)];
  checked(`${caFile} holds no certificate in PEM`, () => ca && new X509Certificate(ca));
  checked(`${certFile} and ${keyFile} are no certificate and its key, in PEM`, () =>
    cert && key ? createSecureContext({ cert, key }) : undefined,
  );
  return ChannelCredentials.createSsl(ca, key, cert);
}

/** What the libraries say of a broken file names no file. */
function checked(problem: string, check: () => unknown): void {
  try {
    check();
  } catch (cause) {
    throw new Failure('failed_precondition', problem, { reason: 'TLS_FILE_INVALID', cause });
  }
}
