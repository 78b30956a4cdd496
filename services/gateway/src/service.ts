import { Failure } from '@medmesh/errors';
import { inference, lifecycle, model } from '@medmesh/proto';
import { createClient, openChannel, rawProxy, type ServerTls } from '@medmesh/rpc';
import type { ServiceContext, Started } from '@medmesh/service';
import { openApiKeys, openToAll } from './api-keys.ts';
import { authenticate } from './authenticate.ts';
import type { GatewayConfig } from './config.ts';
import { createModels } from './openai/models.ts';
import { startOpenAiServer } from './openai/server.ts';
import { backends, routes } from './routes.ts';

function tlsOf(config: GatewayConfig): ServerTls | undefined {
  const { TLS_CERT_FILE: certFile, TLS_PRIVATE_FILE: keyFile, TLS_CLIENT_CA_FILE: clientCaFile } = config;
  if (certFile === undefined && keyFile === undefined && clientCaFile === undefined) return undefined;
  if (certFile === undefined || keyFile === undefined) {
    throw new Failure('failed_precondition', 'TLS needs both TLS_CERT_FILE and TLS_PRIVATE_FILE', {
      reason: 'TLS_CONFIG_INVALID',
    });
  }
  return { certFile, keyFile, reloadMs: config.TLS_RELOAD_MS, ...(clientCaFile === undefined ? {} : { clientCaFile }) };
}

/** Lets callers in by their keys, forwards every service to the process that owns it, and answers OpenAI's HTTP API. */
export async function startGateway(context: ServiceContext<GatewayConfig>): Promise<Started> {
  const { config, metrics, log, health } = context;
  const tls = tlsOf(config);
  const keys = config.API_KEYS_FILE === undefined ? openToAll : openApiKeys(config.API_KEYS_FILE, log);
  if (config.API_KEYS_FILE === undefined && !['127.0.0.1', '::1', 'localhost'].includes(config.LISTEN_HOST))
    log.warn({ host: config.LISTEN_HOST }, 'everybody who reaches this address is let in; set API_KEYS_FILE');
  const channels = backends.map((backend) => ({ backend, channel: openChannel(config[backend]) }));
  const services = channels.flatMap(({ backend, channel }) =>
    // The key ends here; the tenant goes on in its place.
    routes[backend].map((definition) => rawProxy(definition, channel, { metrics, dropHeaders: ['authorization'] })),
  );
  const channelOf = (backend: (typeof backends)[number]) => {
    const found = channels.find((c) => c.backend === backend);
    if (found === undefined) throw new Failure('internal', `no channel for ${backend}`, { reason: 'UNFORESEEN' });
    return found.channel;
  };
  const models = createModels(
    createClient(lifecycle.AdapterServiceDefinition, channelOf('LIFECYCLE_ADDR'), { metrics }),
    createClient(model.ModelServiceDefinition, channelOf('QUANTIZER_ADDR'), { metrics }),
    config.PROJECT,
  );
  const answers = createClient(inference.InferenceServiceDefinition, channelOf('INFERENCE_ADDR'), { metrics });
  const http = await startOpenAiServer({
    host: config.LISTEN_HOST,
    port: config.HTTP_PORT,
    tls,
    keys,
    models,
    inference: answers,
    health,
    log,
    metrics,
  });
  return {
    services,
    tls,
    middleware: [authenticate(keys)],
    ports: { http: http.port },
    stop: () => http.stop(),
    close() {
      keys.close();
      for (const { channel } of channels) channel.close();
      return Promise.resolve();
    },
  };
}
