import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Health } from '@medmesh/rpc';
import type { Metrics } from '@medmesh/telemetry';

export type HttpEndpoint = { readonly port: number; close(): Promise<void> };

/**
 * `/metrics` for Prometheus, `/healthz` (200 while the process may be sent requests, else 503) and `/livez` (200 while it works at all).
 * Plain node:http: three fixed answers need no framework.
 */
export async function startHttpEndpoint(
  host: string,
  port: number,
  metrics: Metrics,
  health: Health,
): Promise<HttpEndpoint> {
  const server = createServer((request, response) => {
    const answer = (status: number, type: string, body: string) =>
      response.writeHead(status, { 'content-type': type }).end(body);
    const state = (name: string) => {
      const ok = health.isServing(name);
      answer(ok ? 200 : 503, 'text/plain; charset=utf-8', ok ? 'ok\n' : 'not serving\n');
    };
    switch (request.url?.split('?')[0]) {
      case '/metrics':
        metrics.text().then(
          (text) => answer(200, metrics.contentType, text),
          () => answer(500, 'text/plain; charset=utf-8', 'metrics could not be read\n'),
        );
        return;
      case '/healthz':
        state('');
        return;
      case '/livez':
        state('live');
        return;
      default:
        answer(404, 'text/plain; charset=utf-8', 'there are /metrics, /healthz and /livez\n');
    }
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, host, () => resolve());
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
