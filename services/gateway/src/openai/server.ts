import { once } from 'node:events';
import {
  createServer as createHttpServer,
  type IncomingMessage,
  type RequestListener,
  type ServerResponse,
} from 'node:http';
import {
  createServer as createHttpsServer,
  type ServerOptions as HttpsOptions,
  type Server as HttpsServer,
} from 'node:https';
import type { AddressInfo } from 'node:net';
import { Failure, invalidField, toFailure } from '@medmesh/errors';
import type { Logger } from '@medmesh/log';
import type { inference } from '@medmesh/proto';
import {
  type Client,
  type Health,
  Metadata,
  openTlsFiles,
  type ServerTls,
  type TlsFiles,
  tenantHeader,
} from '@medmesh/rpc';
import { callDurationBuckets, extractHeaders, type Metrics, withSpan } from '@medmesh/telemetry';
import type { ApiKeys } from '../api-keys.ts';
import { chatChunks, chatCompletion, textChunks, textCompletion } from './answer.ts';
import { embeddingList, embeddingSchema, embedRequest } from './embeddings.ts';
import { toOpenAiError } from './errors.ts';
import { type Models, modelRef } from './models.ts';
import { chatRequest, chatSchema, completionRequests, completionSchema, parseBody } from './requests.ts';

export type OpenAiDeps = {
  host: string;
  port: number;
  tls: ServerTls | undefined;
  keys: ApiKeys;
  models: Models;
  inference: Pick<Client<inference.InferenceServiceDefinition>, 'generate' | 'embed'>;
  health: Health;
  log: Logger;
  metrics: Metrics;
};

export type OpenAiServer = {
  readonly port: number;
  /** Takes no more requests and lets the open ones finish. */
  stop(): Promise<void>;
};

const maxBodyBytes = 8 * 2 ** 20;
/** A body that does not arrive in this time is given up. */
const requestTimeoutMs = 60_000;

type Call = { request: IncomingMessage; response: ServerResponse; metadata: Metadata; signal: AbortSignal };

async function readJson(request: IncomingMessage): Promise<unknown> {
  if (!/^application\/json\b/i.test(request.headers['content-type'] ?? ''))
    throw invalidField('content-type', 'is not application/json');
  const parts: Buffer[] = [];
  let size = 0;
  for await (const part of request as AsyncIterable<Buffer>) {
    size += part.length;
    if (size > maxBodyBytes) throw invalidField('body', `is larger than ${maxBodyBytes} bytes`);
    parts.push(part);
  }
  try {
    return JSON.parse(Buffer.concat(parts).toString('utf8'));
  } catch {
    throw invalidField('body', 'is no JSON');
  }
}

function sendJson(response: ServerResponse, status: number, body: unknown, headers: Record<string, string> = {}): void {
  if (response.headersSent || response.destroyed) return;
  response.writeHead(status, { 'content-type': 'application/json', ...headers }).end(JSON.stringify(body));
}

/** Sends chunks as server-sent events. The first is awaited before the head is sent, so that a refusal still has its status. */
async function sendEvents(
  response: ServerResponse,
  chunks: AsyncGenerator<unknown>,
  signal: AbortSignal,
): Promise<void> {
  const write = async (data: string) => {
    if (!response.write(`data: ${data}\n\n`)) await once(response, 'drain', { signal });
  };
  let next = await chunks.next();
  response.writeHead(200, { 'content-type': 'text/event-stream; charset=utf-8', 'cache-control': 'no-store' });
  try {
    for (; !next.done; next = await chunks.next()) await write(JSON.stringify(next.value));
    await write('[DONE]');
  } catch (error) {
    if (!signal.aborted) await write(JSON.stringify(toOpenAiError(error).body));
  } finally {
    await chunks.return(undefined);
  }
  response.end();
}

/** Where clients have an authority, only those with its certificate are let in. Renewed files are used by the connections that come after. */
function httpsServer(files: TlsFiles, options: HttpsOptions, listener: RequestListener): HttpsServer {
  const { ca } = files.current;
  const withClients = ca === undefined ? {} : { requestCert: true, rejectUnauthorized: true };
  const server = createHttpsServer({ ...options, ...files.current, ...withClients }, listener);
  files.watch((pems) => server.setSecureContext(pems));
  return server;
}

/**
 * OpenAI's chat completions, completions, embeddings and models over HTTP, answered by the inference service. What is not supported is refused by name, never
 * ignored. `/health` needs no key.
 */
export async function startOpenAiServer(deps: OpenAiDeps): Promise<OpenAiServer> {
  const { keys, models, log } = deps;
  const { generate } = deps.inference;
  const duration = deps.metrics.histogram({
    name: 'http_server_request_duration_seconds',
    help: 'Time from a request to the end of its answer.',
    labelNames: ['http_route', 'http_response_status_code'],
    buckets: callDurationBuckets,
  });

  async function chat({ request, response, metadata, signal }: Call): Promise<void> {
    const body = parseBody(chatSchema, await readJson(request));
    const model = await models.find(body.model, metadata);
    const events = generate(chatRequest(body, modelRef(model)), { metadata, signal });
    const logprobs = body.logprobs === true;
    if (body.stream === true) {
      const usage = body.stream_options?.include_usage === true;
      await sendEvents(response, chatChunks(events, body.model, logprobs, usage), signal);
    } else {
      sendJson(response, 200, await chatCompletion(events, body.model, logprobs));
    }
  }

  async function complete({ request, response, metadata, signal }: Call): Promise<void> {
    const body = parseBody(completionSchema, await readJson(request));
    const model = await models.find(body.model, metadata);
    // One that fails ends the others.
    const failed = new AbortController();
    const all = AbortSignal.any([signal, failed.signal]);
    const prompts = completionRequests(body, modelRef(model)).map((r) => generate(r, { metadata, signal: all }));
    const logprobs = body.logprobs != null;
    try {
      if (body.stream === true) {
        const usage = body.stream_options?.include_usage === true;
        await sendEvents(response, textChunks(prompts, body.model, body.n ?? 1, logprobs, usage), signal);
      } else {
        sendJson(response, 200, await textCompletion(prompts, body.model, logprobs));
      }
    } finally {
      failed.abort();
    }
  }

  async function embeddings({ request, response, metadata, signal }: Call): Promise<void> {
    const body = parseBody(embeddingSchema, await readJson(request));
    const model = await models.find(body.model, metadata);
    const made = await deps.inference.embed(embedRequest(body, modelRef(model)), { metadata, signal });
    sendJson(response, 200, embeddingList(made, body));
  }

  const methods: Record<string, { method: string; answer: (call: Call) => Promise<void> }> = {
    '/v1/chat/completions': { method: 'POST', answer: chat },
    '/v1/completions': { method: 'POST', answer: complete },
    '/v1/embeddings': { method: 'POST', answer: embeddings },
    '/v1/models': {
      method: 'GET',
      answer: async ({ response, metadata }) =>
        sendJson(response, 200, { object: 'list', data: await models.list(metadata) }),
    },
  };

  async function route(path: string, call: Call): Promise<void> {
    const one = /^\/v1\/models\/(.+)$/.exec(path)?.[1];
    const found =
      one === undefined
        ? methods[path]
        : {
            method: 'GET',
            answer: async ({ response, metadata }: Call) =>
              sendJson(response, 200, await models.find(decodeURIComponent(one), metadata)),
          };
    if (found === undefined)
      throw new Failure(
        'not_found',
        'this server has /v1/chat/completions, /v1/completions, /v1/embeddings and /v1/models',
        {
          reason: 'ROUTE_UNKNOWN',
        },
      );
    if (call.request.method !== found.method)
      throw invalidField('method', `is ${call.request.method ?? ''}; use ${found.method}`);
    await found.answer(call);
  }

  async function handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const started = performance.now();
    const path = (request.url ?? '').split('?')[0] ?? '';
    if (path === '/health') {
      const serving = deps.health.isServing('');
      response
        .writeHead(serving ? 200 : 503, { 'content-type': 'text/plain' })
        .end(serving ? 'serving\n' : 'not serving\n');
      return;
    }
    const gone = new AbortController();
    response.once('close', () => gone.abort());
    const name = Object.hasOwn(methods, path)
      ? path
      : path.startsWith('/v1/models/')
        ? '/v1/models/{model}'
        : 'unknown';
    const parent = extractHeaders({ get: (header) => request.headers[header] });
    let reason: string | undefined;
    try {
      await withSpan(`${request.method ?? ''} ${name}`, { kind: 'server', parent }, async () => {
        const { tenant } = keys.authenticate(request.headers.authorization);
        const metadata = Metadata(tenant === '' ? {} : { [tenantHeader]: tenant });
        await route(path, { request, response, metadata, signal: gone.signal });
      });
    } catch (error) {
      const failure = toFailure(error);
      reason = failure.reason;
      const { status, headers, body } = toOpenAiError(failure);
      if (status >= 500) log.error({ err: failure, route: name }, 'request failed');
      sendJson(response, status, body, headers);
      // What is left of a body that was not read would be taken for the next request.
      if (!request.complete) response.once('finish', () => request.destroy());
    } finally {
      const ms = performance.now() - started;
      duration.observe(ms / 1000, { http_route: name, http_response_status_code: response.statusCode });
      log.info(
        {
          route: name,
          status: response.statusCode,
          ms: Math.round(ms * 10) / 10,
          ...(reason === undefined ? {} : { reason }),
        },
        'request',
      );
    }
  }

  const options = { requestTimeout: requestTimeoutMs, headersTimeout: requestTimeoutMs };
  const listener = (request: IncomingMessage, response: ServerResponse) => void handle(request, response);
  const tlsFiles = deps.tls === undefined ? undefined : openTlsFiles(deps.tls, log);
  const server =
    tlsFiles === undefined ? createHttpServer(options, listener) : httpsServer(tlsFiles, options, listener);
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause) =>
      reject(
        new Failure('failed_precondition', `cannot listen on ${deps.host}:${deps.port} for HTTP; is the port taken?`, {
          reason: 'LISTEN_FAILED',
          cause,
        }),
      ),
    );
    server.listen(deps.port, deps.host, resolve);
  });
  return {
    port: (server.address() as AddressInfo).port,
    stop: () =>
      new Promise((resolve) => {
        tlsFiles?.unwatch();
        server.close(() => resolve());
        server.closeIdleConnections();
      }),
  };
}
