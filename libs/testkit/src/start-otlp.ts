import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { gunzipSync } from 'node:zlib';
import { waitFor } from './wait-for.ts';

export type SpanKind = 'unspecified' | 'internal' | 'server' | 'client' | 'producer' | 'consumer';
export type AttributeValue = string | number | boolean | AttributeValue[] | null;
export type Attributes = Record<string, AttributeValue>;

export type CollectedSpan = {
  traceId: string;
  spanId: string;
  /** Empty for a root span. */
  parentSpanId: string;
  name: string;
  kind: SpanKind;
  /** `service.name` of the resource. */
  service: string;
  scope: string;
  attributes: Attributes;
  resource: Attributes;
  status: 'unset' | 'ok' | 'error';
  statusMessage: string;
  startNs: bigint;
  endNs: bigint;
  events: { name: string; attributes: Attributes }[];
  links: { traceId: string; spanId: string }[];
};

export type OtlpCollector = {
  /** For OTEL_EXPORTER_OTLP_ENDPOINT. */
  readonly endpoint: string;
  /** Everything received so far, in order of arrival. */
  spans(): readonly CollectedSpan[];
  /** Waits until the predicate holds for the spans received, and returns them. */
  waitForSpans(
    predicate: (spans: readonly CollectedSpan[]) => boolean,
    timeoutMs?: number,
  ): Promise<readonly CollectedSpan[]>;
  clear(): void;
  stop(): Promise<void>;
};

// OTLP/JSON as the exporter writes it; every field may be absent.
type JsonValue = {
  stringValue?: string;
  intValue?: string | number;
  doubleValue?: number;
  boolValue?: boolean;
  arrayValue?: { values?: JsonValue[] };
};
type JsonAttributes = { key: string; value?: JsonValue }[];
type JsonSpan = {
  traceId: string;
  spanId: string;
  parentSpanId?: string;
  name?: string;
  kind?: number;
  startTimeUnixNano?: string;
  endTimeUnixNano?: string;
  attributes?: JsonAttributes;
  status?: { code?: number; message?: string };
  events?: { name?: string; attributes?: JsonAttributes }[];
  links?: { traceId: string; spanId: string }[];
};
type JsonExport = {
  resourceSpans?: {
    resource?: { attributes?: JsonAttributes };
    scopeSpans?: { scope?: { name?: string }; spans?: JsonSpan[] }[];
  }[];
};

const kinds: readonly SpanKind[] = ['unspecified', 'internal', 'server', 'client', 'producer', 'consumer'];
const statuses = ['unset', 'ok', 'error'] as const;

function readValue(value: JsonValue | undefined): AttributeValue {
  if (!value) return null;
  if (value.arrayValue) return (value.arrayValue.values ?? []).map(readValue);
  if (value.intValue !== undefined) return Number(value.intValue);
  return value.stringValue ?? value.doubleValue ?? value.boolValue ?? null;
}

const readAttributes = (attributes: JsonAttributes = []): Attributes =>
  Object.fromEntries(attributes.map(({ key, value }) => [key, readValue(value)]));

/** One flat list of the spans of an export request. */
function flatten(body: JsonExport): CollectedSpan[] {
  return (body.resourceSpans ?? []).flatMap(({ resource, scopeSpans = [] }) => {
    const resourceAttributes = readAttributes(resource?.attributes);
    return scopeSpans.flatMap(({ scope, spans = [] }) =>
      spans.map((span) => ({
        traceId: span.traceId,
        spanId: span.spanId,
        parentSpanId: span.parentSpanId ?? '',
        name: span.name ?? '',
        kind: kinds[span.kind ?? 0] ?? 'unspecified',
        service: String(resourceAttributes['service.name'] ?? ''),
        scope: scope?.name ?? '',
        attributes: readAttributes(span.attributes),
        resource: resourceAttributes,
        status: statuses[span.status?.code ?? 0] ?? 'unset',
        statusMessage: span.status?.message ?? '',
        startNs: BigInt(span.startTimeUnixNano ?? 0),
        endNs: BigInt(span.endTimeUnixNano ?? 0),
        events: (span.events ?? []).map((event) => ({
          name: event.name ?? '',
          attributes: readAttributes(event.attributes),
        })),
        links: (span.links ?? []).map(({ traceId, spanId }) => ({ traceId, spanId })),
      })),
    );
  });
}

/** Starts an OTLP/HTTP collector (JSON encoding) on 127.0.0.1 that keeps what it receives in memory. */
export async function startOtlp(): Promise<OtlpCollector> {
  let collected: CollectedSpan[] = [];
  const server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.on('end', () => {
      const body = Buffer.concat(chunks);
      try {
        const json = request.headers['content-encoding'] === 'gzip' ? gunzipSync(body) : body;
        if (request.url === '/v1/traces') collected.push(...flatten(JSON.parse(json.toString('utf8')) as JsonExport));
        response.writeHead(200, { 'content-type': 'application/json' }).end('{}');
      } catch {
        response.writeHead(415).end('this collector reads OTLP as JSON');
      }
    });
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');

  return {
    endpoint: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    spans: () => collected,
    waitForSpans: async (predicate, timeoutMs = 30_000) => {
      try {
        return await waitFor(() => predicate(collected) && collected, { what: 'spans', timeoutMs });
      } catch (cause) {
        const seen = collected.map((span) => `${span.service} ${span.kind} ${span.name}`).join('\n  ');
        throw new Error(`the spans waited for did not come in ${timeoutMs} ms; received:\n  ${seen}`, { cause });
      }
    },
    clear: () => {
      collected = [];
    },
    stop: async () => {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
}
