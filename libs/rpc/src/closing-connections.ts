import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import type { Http2Session, Http2Stream } from 'node:http2';

type PingCallback = (error: Error | null, duration: number, payload: NonSharedBuffer) => void;

const cared = new WeakSet<Http2Session>();

/**
 * Lets the calls of a connection that is closing in order (its age, a drain) finish. grpc-js pings over every connection to find dead peers; Node sends no
 * ping over a session that was told to close, and grpc-js takes that for a dead peer: every call still open at the next ping would end with "Connection
 * dropped" at the client, or "RST_STREAM with code 0" from the server, in place of its status (grpc-node #3068). Empty SETTINGS ask the same of a peer: it
 * must acknowledge them, and Node sends them until the end.
 */
function pingWhileClosing(message: unknown): void {
  const { session } = (message as { stream: Http2Stream }).stream;
  if (session === undefined || cared.has(session)) return;
  cared.add(session);
  const ping: (callback: PingCallback) => boolean = session.ping.bind(session);
  session.ping = (first: unknown, second?: PingCallback) => {
    const callback = second ?? (first as PingCallback);
    if (!session.closed) return ping(callback);
    session.settings({}, (error, _settings, duration) => callback(error, duration, Buffer.alloc(0)));
    return true;
  };
}

/** Streams are the only place where Node shows the sessions that grpc-js makes. */
const channels = ['http2.client.stream.created', 'http2.server.stream.created'];

/** For all connections of this process; calling it again changes nothing. */
export function careForClosingConnections(): void {
  for (const channel of channels) {
    unsubscribe(channel, pingWhileClosing);
    subscribe(channel, pingWhileClosing);
  }
}
