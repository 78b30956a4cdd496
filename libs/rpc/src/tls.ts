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

/** Read once: a client with renewed files opens a new channel. */
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
