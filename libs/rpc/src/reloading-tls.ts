import { readFileSync } from 'node:fs';
import { createSecureContext } from 'node:tls';
import { experimental, type ServerCredentials } from '@grpc/grpc-js';
import { Failure } from '@medmesh/errors';
import type { Logger } from '@medmesh/log';

type Files = { readonly certFile: string; readonly keyFile: string; readonly clientCaFile?: string | undefined };
type Pems = { readonly cert: Buffer; readonly key: Buffer; readonly ca: Buffer | undefined };
type IdentityListener = Parameters<experimental.CertificateProvider['addIdentityCertificateListener']>[0];
type CaListener = Parameters<experimental.CertificateProvider['addCaCertificateListener']>[0];

/**
 * Server credentials from PEM files that are looked at again every `intervalMs`: a renewed certificate is used by the
 * connections that come after. Files that cannot be read, or do not belong together (a renewal may be under way), change
 * nothing; at the start they are a Failure that names them.
 */
export function reloadingCredentials(files: Files, intervalMs: number, log: Logger): ServerCredentials {
  let current = readPems(files);
  const identities = new Set<IdentityListener>();
  const authorities = new Set<CaListener>();
  let timer: NodeJS.Timeout | undefined;
  let refused = '';

  const identity = () => ({ certificate: current.cert, privateKey: current.key });
  const authority = () => (current.ca === undefined ? null : { caCertificate: current.ca });
  const look = (): void => {
    let next: Pems;
    try {
      next = readPems(files);
    } catch (error) {
      const why = error instanceof Error ? error.message : 'unknown error';
      if (why !== refused) log.warn({ err: error }, 'the TLS files have changed and cannot be used; the old ones stay');
      refused = why;
      return;
    }
    refused = '';
    if (same(next, current)) return;
    current = next;
    // The authority first: a pair is put in use together with the authority that is known by then.
    for (const listener of authorities) listener(authority());
    for (const listener of identities) listener(identity());
    log.info('the TLS files have changed; new connections use them');
  };
  const watch = (): void => {
    const wanted = identities.size + authorities.size > 0;
    if (wanted && timer === undefined) timer = setInterval(look, intervalMs).unref();
    if (wanted || timer === undefined) return;
    clearInterval(timer);
    timer = undefined;
  };
  const provider: experimental.CertificateProvider = {
    addIdentityCertificateListener(listener) {
      identities.add(listener);
      // Not at once: who adds a listener is not ready to use it before it has been added.
      process.nextTick(() => listener(identity()));
      watch();
    },
    removeIdentityCertificateListener(listener) {
      identities.delete(listener);
      watch();
    },
    addCaCertificateListener(listener) {
      authorities.add(listener);
      process.nextTick(() => listener(authority()));
      watch();
    },
    removeCaCertificateListener(listener) {
      authorities.delete(listener);
      watch();
    },
  };
  const withClients = files.clientCaFile !== undefined;
  // In this order, whatever the parameters are called: the server's own pair, then the clients' authority.
  return experimental.createCertificateProviderServerCredentials(provider, withClients ? provider : null, withClients);
}

const same = (a: Pems, b: Pems): boolean =>
  a.cert.equals(b.cert) && a.key.equals(b.key) && (a.ca ?? Buffer.alloc(0)).equals(b.ca ?? Buffer.alloc(0));

function readPems({ certFile, keyFile, clientCaFile }: Files): Pems {
  const pems = {
    cert: readPem(certFile),
    key: readPem(keyFile),
    ca: clientCaFile === undefined ? undefined : readPem(clientCaFile),
  };
  try {
    createSecureContext(pems);
  } catch (cause) {
    throw new Failure('failed_precondition', `${certFile} and ${keyFile} are no certificate and its key, in PEM`, {
      reason: 'TLS_FILE_INVALID',
      cause,
    });
  }
  return pems;
}

/** A PEM file's bytes; Failure `failed_precondition` TLS_FILE_UNREADABLE with its name. */
export function readPem(path: string): Buffer {
  try {
    return readFileSync(path);
  } catch (cause) {
    throw new Failure('failed_precondition', `cannot read the TLS file ${path}; mount it or correct its path`, {
      reason: 'TLS_FILE_UNREADABLE',
      cause,
    });
  }
}
