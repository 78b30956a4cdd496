import { Failure } from '@medmesh/errors';
import type { Logger } from '@medmesh/log';
import { type ConnectionOptions, connect, errors, type NatsConnection } from '@nats-io/transport-node';
import { pause } from './broker.ts';

/** Consumers with several filters, stream metadata and a KV that keeps its promises: all since 2.10. */
const oldestServer = { major: 2, minor: 10 };

const connectTimeoutMs = 2_000;
const firstPauseMs = 200;
const longestPauseMs = 5_000;

export type ConnectOptions = {
  /** `nats://host:port` or `tls://host:port`, with `user:password@` or `token@` if need be; several separated by commas. */
  readonly url: string;
  /** Shown by the broker for this connection. */
  readonly name: string;
  readonly log: Logger;
  readonly signal?: AbortSignal | undefined;
};

/**
 * Connects to nats-server. While it is down, says so in the log and tries again until `signal` aborts; once connected, reconnects for ever.
 * @throws Failure `failed_precondition` if the server is older than 2.10 or has JetStream switched off; `permission_denied` if it refuses the credentials.
 */
export async function connectNats(o: ConnectOptions): Promise<NatsConnection> {
  const { options, shown } = readUrl(o.url);
  let pauseMs = firstPauseMs;
  for (let attempt = 1; ; attempt += 1) {
    o.signal?.throwIfAborted();
    try {
      const nc = await connect({
        ...options,
        name: o.name,
        timeout: connectTimeoutMs,
        maxReconnectAttempts: -1,
        reconnectTimeWait: 250,
        reconnectJitter: 250,
        pingInterval: 10_000,
        maxPingOut: 2,
        // A secret that is being rotated is refused for a while; only the first connection takes a refusal for an answer.
        ignoreAuthErrorAbort: true,
      });
      try {
        await checkServer(nc, shown);
      } catch (error) {
        await nc.close();
        throw error;
      }
      o.log.info({ server: shown, version: nc.info?.version }, `connected to nats-server at ${shown}`);
      void logConnection(nc, shown, o.log);
      return nc;
    } catch (error) {
      if (error instanceof Failure) throw error;
      if (error instanceof errors.AuthorizationError || error instanceof errors.UserAuthenticationExpiredError) {
        throw new Failure('permission_denied', `nats-server at ${shown} refuses these credentials; check NATS_URL`, {
          reason: 'BROKER_CREDENTIALS_REFUSED',
          cause: error,
        });
      }
      o.log.warn(
        { server: shown, attempt, retry_in_ms: pauseMs, err: error },
        `no nats-server answers at ${shown}; is it running? Trying again in ${(pauseMs / 1000).toFixed(1)} s`,
      );
    }
    await pause(pauseMs, o.signal);
    pauseMs = Math.min(2 * pauseMs, longestPauseMs);
  }
}

/** Splits credentials from addresses: the client takes them apart, and the log must not have them. */
function readUrl(url: string): { options: ConnectionOptions; shown: string } {
  const servers: string[] = [];
  const options: ConnectionOptions = {};
  for (const part of url.split(',').map((text) => text.trim())) {
    let parsed: URL;
    try {
      parsed = new URL(/^[a-z]+:\/\//.test(part) ? part : `nats://${part}`);
    } catch {
      throw new Failure('invalid_argument', 'NATS_URL is not a URL; write nats://host:port', {
        reason: 'FIELD_INVALID',
      });
    }
    if ((parsed.protocol !== 'nats:' && parsed.protocol !== 'tls:') || parsed.hostname === '') {
      throw new Failure(
        'invalid_argument',
        `NATS_URL is not of the form nats://host:port or tls://host:port; it begins with ${parsed.protocol}`,
        {
          reason: 'FIELD_INVALID',
        },
      );
    }
    if (parsed.protocol === 'tls:') options.tls = {};
    if (parsed.password !== '') {
      options.user = decodeURIComponent(parsed.username);
      options.pass = decodeURIComponent(parsed.password);
    } else if (parsed.username !== '') {
      options.token = decodeURIComponent(parsed.username);
    }
    servers.push(`${parsed.hostname}:${parsed.port || '4222'}`);
  }
  options.servers = servers;
  return { options, shown: servers.join(',') };
}

async function checkServer(nc: NatsConnection, shown: string): Promise<void> {
  const version = nc.info?.version ?? 'unknown';
  const [major = 0, minor = 0] = version.split('.').map(Number);
  if (major < oldestServer.major || (major === oldestServer.major && minor < oldestServer.minor)) {
    throw new Failure('failed_precondition', `nats-server at ${shown} is ${version}; install 2.10 or newer`, {
      reason: 'BROKER_TOO_OLD',
      metadata: { version },
    });
  }
  if (nc.info?.jetstream !== true) {
    throw new Failure(
      'failed_precondition',
      `nats-server at ${shown} runs without JetStream; start it with --jetstream`,
      {
        reason: 'BROKER_WITHOUT_JETSTREAM',
      },
    );
  }
}

async function logConnection(nc: NatsConnection, shown: string, log: Logger): Promise<void> {
  for await (const status of nc.status()) {
    if (status.type === 'disconnect') log.warn({ server: shown }, `lost nats-server at ${shown}; reconnecting`);
    else if (status.type === 'reconnect') log.info({ server: shown }, `reconnected to nats-server at ${shown}`);
    else if (status.type === 'slowConsumer')
      log.warn({ server: shown }, 'nats-server dropped messages: this process reads too slowly');
    else if (status.type === 'error') log.warn({ server: shown, err: status.error }, 'nats-server reported an error');
  }
}
