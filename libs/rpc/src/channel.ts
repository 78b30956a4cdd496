import { type Channel, createChannel } from 'nice-grpc';
import { careForClosingConnections } from './closing-connections.ts';
import { messageLimits } from './limits.ts';
import { type ClientTls, channelCredentials } from './tls.ts';

export type ChannelOptions = {
  readonly tls?: ClientTls | undefined;
  /** While calls are open it asks so often whether the server is still there, and waits so long for an answer. Default: every 10 s, for 10 s. */
  readonly keepalive?: { readonly everyMs: number; readonly timeoutMs: number } | undefined;
};

/**
 * A channel to every address `host:port` resolves to, calls spread round robin. It connects at the first call, finds
 * a dead peer within 20 s while calls are open, and follows changes in DNS. `address` may name a scheme (`dns:///`,
 * `unix:/path`). Closing it is the caller's part.
 */
export function openChannel(address: string, o: ChannelOptions = {}): Channel {
  careForClosingConnections();
  const target = /^(dns|unix|ipv4|ipv6|xds):/.test(address) ? address : `dns:///${address}`;
  return createChannel(target, channelCredentials(o.tls), {
    ...messageLimits,
    'grpc.service_config': JSON.stringify({ loadBalancingConfig: [{ round_robin: {} }] }),
    'grpc.keepalive_time_ms': o.keepalive?.everyMs ?? 10_000,
    // As long as the slowest answer of a process that is starved of processor time: all calls of a connection end with it.
    'grpc.keepalive_timeout_ms': o.keepalive?.timeoutMs ?? 10_000,
    'grpc.keepalive_permit_without_calls': 0,
    'grpc.initial_reconnect_backoff_ms': 200,
    'grpc.max_reconnect_backoff_ms': 5_000,
    'grpc.dns_min_time_between_resolutions_ms': 5_000,
    'grpc.enable_channelz': 0,
    ...(o.tls?.serverName === undefined ? {} : { 'grpc.ssl_target_name_override': o.tls.serverName }),
  });
}
