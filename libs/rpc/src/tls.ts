import { readFileSync } from 'node:fs';
import { ChannelCredentials, ServerCredentials } from '@grpc/grpc-js';
import { Failure } from '@medmesh/errors';

/** PEM files of a server. With `clientCaFile`, only clients with a certificate of that authority are let in. */
export type ServerTls = {
  readonly certFile: string;
  readonly keyFile: string;
  readonly clientCaFile?: string | undefined;
};

/** PEM files of a client. Without `caFile` the system's authorities are trusted. */
export type ClientTls = {
  readonly caFile?: string | undefined;
  readonly certFile?: string | undefined;
  readonly keyFile?: string | undefined;
  /** Checked against the server's certificate in place of the address's host. */
  readonly serverName?: string | undefined;
};

/** Read once, at start: a renewed certificate needs a new process. */
export function serverCredentials(tls: ServerTls | undefined): ServerCredentials {
  if (tls === undefined) return ServerCredentials.createInsecure();
  const pair = { cert_chain: readPem(tls.certFile), private_key: readPem(tls.keyFile) };
  const clientCa = tls.clientCaFile === undefined ? null : readPem(tls.clientCaFile);
  return ServerCredentials.createSsl(clientCa, [pair], clientCa !== null);
}

export function channelCredentials(tls: ClientTls | undefined): ChannelCredentials {
  if (tls === undefined) return ChannelCredentials.createInsecure();
  if ((tls.certFile === undefined) !== (tls.keyFile === undefined)) {
    throw new Failure('invalid_argument', 'a client certificate needs both certFile and keyFile', {
      reason: 'TLS_CONFIG_INVALID',
    });
  }
  const pem = (path: string | undefined) => (path === undefined ? null : readPem(path));
  return ChannelCredentials.createSsl(pem(tls.caFile), pem(tls.keyFile), pem(tls.certFile));
}

function readPem(path: string): Buffer {
  try {
    return readFileSync(path);
  } catch (cause) {
    throw new Failure('failed_precondition', `cannot read the TLS file ${path}; mount it or correct its path`, {
      reason: 'TLS_FILE_UNREADABLE',
      cause,
    });
  }
}
