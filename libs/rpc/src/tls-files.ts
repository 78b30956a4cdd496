import { readFileSync } from 'node:fs';
import { createSecureContext } from 'node:tls';
import { Failure } from '@medmesh/errors';
import type { Logger } from '@medmesh/log';

/** PEM files of a server. With `clientCaFile`, only clients with a certificate of that authority are let in. */
export type ServerTls = {
  readonly certFile: string;
  readonly keyFile: string;
  readonly clientCaFile?: string | undefined;
  /** How often the files are looked at for renewed ones. Default: every minute. */
  readonly reloadMs?: number | undefined;
};

/** What stands in the files. */
export type Pems = { readonly cert: Buffer; readonly key: Buffer; readonly ca: Buffer | undefined };

export type TlsFiles = {
  /** The last that could be used. */
  readonly current: Pems;
  /** Starts looking; `onChange` gets what is new. */
  watch(onChange: (pems: Pems) => void): void;
  /** Ends it. */
  unwatch(): void;
};

const defaultReloadMs = 60_000;

/**
 * PEM files that are looked at again while they are watched. Files that cannot be read, or do not belong together (a renewal may be under way), change
 * nothing; at the start they are a Failure that names them.
 */
export function openTlsFiles(files: ServerTls, log: Logger): TlsFiles {
  let current = readPems(files);
  let timer: NodeJS.Timeout | undefined;
  let refused = '';

  const look = (onChange: (pems: Pems) => void): void => {
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
    onChange(next);
    log.info('the TLS files have changed; new connections use them');
  };

  return {
    get current() {
      return current;
    },
    watch(onChange) {
      timer ??= setInterval(() => look(onChange), files.reloadMs ?? defaultReloadMs).unref();
    },
    unwatch() {
      clearInterval(timer);
      timer = undefined;
    },
  };
}

const same = (a: Pems, b: Pems): boolean =>
  a.cert.equals(b.cert) && a.key.equals(b.key) && (a.ca ?? Buffer.alloc(0)).equals(b.ca ?? Buffer.alloc(0));

function readPems({ certFile, keyFile, clientCaFile }: ServerTls): Pems {
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
