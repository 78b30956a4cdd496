import { openChannel, rawProxy } from '@medmesh/rpc';
import type { ServiceContext, Started } from '@medmesh/service';
import type { GatewayConfig } from './config.ts';
import { backends, routes } from './routes.ts';

/** Forwards every service to the process that owns it, as the bytes it came in. */
export function startGateway(context: ServiceContext<GatewayConfig>): Promise<Started> {
  const { config, metrics } = context;
  const channels = backends.map((backend) => ({ backend, channel: openChannel(config[backend]) }));
  const services = channels.flatMap(({ backend, channel }) =>
    routes[backend].map((definition) => rawProxy(definition, channel, { metrics })),
  );
  return Promise.resolve({
    services,
    close() {
      for (const { channel } of channels) channel.close();
      return Promise.resolve();
    },
  });
}
