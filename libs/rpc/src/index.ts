export {
  type CallContext,
  type Channel,
  Metadata,
  type ServerMiddleware,
  type ServerMiddlewareCall,
  type TsProtoServiceDefinition as ServiceDefinition,
} from 'nice-grpc';
export { bind, type PartialImplementation, type ServiceBinding } from './binding.ts';
export { type ChannelOptions, openChannel } from './channel.ts';
export { type Client, type ClientOptions, createClient } from './create-client.ts';
export { remainingMs } from './deadline.ts';
export { createHealth, type Health } from './health.ts';
export { maxMessageBytes } from './limits.ts';
export { type RawProxyOptions, rawProxy } from './raw-proxy.ts';
export { type RunningServer, type StartServerOptions, startServer } from './start-server.ts';
export { fromStatus, toStatus } from './status.ts';
export { callerTenant, tenantHeader } from './tenant.ts';
export type { ClientTls } from './tls.ts';
export { openTlsFiles, type Pems, type ServerTls, type TlsFiles } from './tls-files.ts';
