import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Failure } from '@medmesh/errors';
import type { Health } from '@medmesh/rpc';
import type { Metrics } from '@medmesh/telemetry';

export type MetricsServer = { readonly port: number; close(): Promise<void> };

/** `/metrics` for Prometheus; `/healthz` for people and load balancers: 200 while the process takes requests, 503 while it starts or stops. */
export async function startMetricsServer(o: {
  host: string;
  port: number;
  metrics: Metrics;
  health: Health;
}): Promise<MetricsServer> {
  const server = createServer((request, response) => {
    const path = request.url?.split('?')[0];
    if (request.method !== 'GET' && request.method !== 'HEAD') {
      response.writeHead(405, { allow: 'GET, HEAD' }).end();
    } else if (path === '/healthz') {
      const serving = o.health.isServing('');
      response
        .writeHead(serving ? 200 : 503, { 'content-type': 'text/plain' })
        .end(serving ? 'serving\n' : 'not serving\n');
    } else if (path === '/metrics') {
      void o.metrics.text().then(
        (text) => response.writeHead(200, { 'content-type': o.metrics.contentType }).end(text),
        () => response.writeHead(500).end(),
      );
    } else {
      response.writeHead(404, { 'content-type': 'text/plain' }).end('see /metrics and /healthz\n');
    }
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause) => {
      const why = 'code' in cause ? String(cause.code) : cause.message;
      reject(
        new Failure(
          'failed_precondition',
          `cannot listen on ${o.host}:${o.port} for metrics (${why}); is the port taken, or the address not this machine's?`,
          {
            reason: 'LISTEN_FAILED',
            cause,
          },
        ),
      );
    });
    server.listen(o.port, o.host, resolve);
  });
  return {
    port: (server.address() as AddressInfo).port,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}
