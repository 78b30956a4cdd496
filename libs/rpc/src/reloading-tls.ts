import { experimental, type ServerCredentials } from '@grpc/grpc-js';
import type { Logger } from '@medmesh/log';
import { openTlsFiles, type Pems, type ServerTls } from './tls-files.ts';

type IdentityListener = Parameters<experimental.CertificateProvider['addIdentityCertificateListener']>[0];
type CaListener = Parameters<experimental.CertificateProvider['addCaCertificateListener']>[0];

/**
 * Server credentials from PEM files that are looked at again: a renewed certificate is used by the connections that come after. Files that cannot be
 * used change nothing; at the start they are a Failure that names them.
 */
export function reloadingCredentials(files: ServerTls, log: Logger): ServerCredentials {
  const tlsFiles = openTlsFiles(files, log);
  const identities = new Set<IdentityListener>();
  const authorities = new Set<CaListener>();

  const identity = ({ cert, key }: Pems) => ({ certificate: cert, privateKey: key });
  const authority = ({ ca }: Pems) => (ca === undefined ? null : { caCertificate: ca });
  const onChange = (pems: Pems): void => {
    // The authority first: a pair is put in use together with the authority that is known by then.
    for (const listener of authorities) listener(authority(pems));
    for (const listener of identities) listener(identity(pems));
  };
  const watch = (): void => {
    if (identities.size + authorities.size > 0) tlsFiles.watch(onChange);
    else tlsFiles.unwatch();
  };
  const provider: experimental.CertificateProvider = {
    addIdentityCertificateListener(listener) {
      identities.add(listener);
      // Not at once: who adds a listener is not ready to use it before it has been added.
      process.nextTick(() => listener(identity(tlsFiles.current)));
      watch();
    },
    removeIdentityCertificateListener(listener) {
      identities.delete(listener);
      watch();
    },
    addCaCertificateListener(listener) {
      authorities.add(listener);
      process.nextTick(() => listener(authority(tlsFiles.current)));
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
