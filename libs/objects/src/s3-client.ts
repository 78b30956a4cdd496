import { AsyncLocalStorage } from 'node:async_hooks';
import http, { type ClientRequest, type IncomingMessage, type RequestOptions } from 'node:http';
import https from 'node:https';
import { setTimeout as sleep } from 'node:timers/promises';
import { Failure } from '@medmesh/errors';
import { Client } from 'minio';

export type S3Options = { url: string; accessKey?: string | undefined; secretKey?: string | undefined };

/** A bucket, and how to talk to it. */
export type S3Bucket = {
  readonly client: Client;
  readonly bucket: string;
  readonly region: string;
  /** `s3://bucket`, without credentials and parameters. */
  readonly url: string;
  /** Calls the store until it answers; see `untilStoreAnswers`. Requests made inside end when the signal aborts. */
  call<T>(what: string, attempt: () => Promise<T>, o?: CallOptions): Promise<T>;
};

export type CallOptions = { signal?: AbortSignal | undefined; patienceMs?: number };

/** A connection on which nothing moves for this long is broken. */
const silenceMs = 30_000;
const defaultPatienceMs = 60_000;
const firstPauseMs = 100;
const longestPauseMs = 5_000;

/** The signal of the call that a request belongs to: the S3 client itself cannot be told to stop. */
const callSignal = new AsyncLocalStorage<AbortSignal | undefined>();

/** Reads `s3://bucket?endpoint=http://host:port&region=…`. Without an endpoint: AWS. */
export function openS3Bucket(o: S3Options): S3Bucket {
  const url = new URL(o.url);
  const bucket = url.hostname;
  const region = url.searchParams.get('region') ?? 'us-east-1';
  const endpoint = readEndpoint(url.searchParams.get('endpoint') ?? `https://s3.${region}.amazonaws.com`);
  if (url.pathname !== '' && url.pathname !== '/') {
    throw new Failure(
      'invalid_argument',
      'the S3 store is a bucket, not a folder in one; write s3://bucket?endpoint=…',
      {
        reason: 'STORE_URL_INVALID',
      },
    );
  }
  const secure = endpoint.protocol === 'https:';
  const client = new Client({
    endPoint: endpoint.hostname,
    port: Number(endpoint.port) || (secure ? 443 : 80),
    useSSL: secure,
    region,
    pathStyle: true,
    ...(o.accessKey === undefined ? {} : { accessKey: o.accessKey }),
    ...(o.secretKey === undefined ? {} : { secretKey: o.secretKey }),
    transport: transport(secure),
    transportAgent: secure ? new https.Agent({ keepAlive: true }) : new http.Agent({ keepAlive: true }),
    // The client would try again once, and write to the console about it.
    retryOptions: { disableRetry: true },
  });
  return {
    client,
    bucket,
    region,
    url: `s3://${bucket}`,
    call: (what, attempt, call = {}) => untilStoreAnswers(what, () => callSignal.run(call.signal, attempt), call),
  };
}

function readEndpoint(text: string): URL {
  try {
    const endpoint = new URL(text);
    if (endpoint.protocol === 'http:' || endpoint.protocol === 'https:') return endpoint;
  } catch {
    // Told below.
  }
  throw new Failure('invalid_argument', 'the endpoint of the S3 store is not an http:// or https:// URL', {
    reason: 'STORE_URL_INVALID',
  });
}

/** node:http with a signal and a limit on silence. */
function transport(secure: boolean) {
  const send = secure ? https.request : http.request;
  return {
    request(options: RequestOptions, onResponse: (response: IncomingMessage) => void): ClientRequest {
      const signal = callSignal.getStore();
      const request = send({ ...options, ...(signal === undefined ? {} : { signal }) }, onResponse);
      request.setTimeout(silenceMs, () =>
        request.destroy(Object.assign(new Error('the store is silent'), { code: 'ETIMEDOUT' })),
      );
      return request;
    },
  } as Pick<typeof https, 'request'>;
}

const networkCodes = new Set([
  'ECONNREFUSED',
  'ECONNRESET',
  'ECONNABORTED',
  'EPIPE',
  'ETIMEDOUT',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'ENOTFOUND',
  'EAI_AGAIN',
  'ERR_STREAM_PREMATURE_CLOSE',
]);
const busyCodes = new Set(['SlowDown', 'ServiceUnavailable', 'InternalError', 'RequestTimeout', 'OperationAborted']);
const refusedCodes = new Set([
  'AccessDenied',
  'SignatureDoesNotMatch',
  'InvalidAccessKeyId',
  'AuthorizationHeaderMalformed',
  'RequestTimeTooSkewed',
]);

const textOf = (error: unknown, name: 'code' | 'message'): string => {
  const value: unknown = error instanceof Error ? Reflect.get(error, name) : undefined;
  return typeof value === 'string' ? value : '';
};

/** Whether the store did not answer, or said "not now". */
function isStoreAway(error: unknown): boolean {
  const code = textOf(error, 'code');
  const message = textOf(error, 'message');
  // What the client makes of statuses 408, 429 and 5xx, and of a connection that ended in the middle of an answer.
  return (
    networkCodes.has(code) || busyCodes.has(code) || /Retryable HTTP status|socket hang up|^aborted$/.test(message)
  );
}

export const isNoSuchKey = (error: unknown): boolean => ['NoSuchKey', 'NotFound'].includes(textOf(error, 'code'));

/**
 * Calls `attempt` until the store answers, pausing longer each time, until the signal aborts (its reason is thrown) or, without a signal, for a minute.
 * Answers that are errors go to the caller at once: not found as it came, everything else as a Failure that names `what` and the store's error code.
 * The client's own errors hold requests with access keys in them: none of them is kept as a cause.
 */
async function untilStoreAnswers<T>(what: string, attempt: () => Promise<T>, o: CallOptions): Promise<T> {
  const patienceMs = o.patienceMs ?? (o.signal === undefined ? defaultPatienceMs : Number.POSITIVE_INFINITY);
  const started = performance.now();
  for (let pauseMs = firstPauseMs; ; pauseMs = Math.min(2 * pauseMs, longestPauseMs)) {
    o.signal?.throwIfAborted();
    try {
      return await attempt();
    } catch (error) {
      o.signal?.throwIfAborted();
      if (error instanceof Failure || isNoSuchKey(error)) throw error;
      if (!isStoreAway(error)) throw refusal(what, error);
      const waitedMs = performance.now() - started;
      if (waitedMs + pauseMs > patienceMs) {
        const code = textOf(error, 'code') || 'no answer';
        throw new Failure('unavailable', `the object store does not answer (${code}); could not ${what}`, {
          reason: 'STORE_UNAVAILABLE',
          retryAfterMs: longestPauseMs,
        });
      }
    }
    const pausing = sleep(
      pauseMs * (0.5 + Math.random() / 2),
      undefined,
      o.signal === undefined ? {} : { signal: o.signal },
    );
    await pausing.catch(() => o.signal?.throwIfAborted());
  }
}

function refusal(what: string, error: unknown): Failure {
  const code = textOf(error, 'code');
  const known = /^[A-Za-z]{1,64}$/.test(code) ? code : 'unknown error';
  if (refusedCodes.has(code)) {
    return new Failure(
      'permission_denied',
      `the object store refuses these credentials (${known}); could not ${what}`,
      {
        reason: 'STORE_CREDENTIALS_REFUSED',
      },
    );
  }
  return new Failure('internal', `the object store answered with an error (${known}); could not ${what}`, {
    reason: 'STORE_REFUSED',
    metadata: { store_code: known },
  });
}
