import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { findProgram } from './repository.ts';
import { type RunningProcess, spawnProcess } from './spawn-process.ts';
import { tempDir } from './temp-dir.ts';
import { waitFor } from './wait-for.ts';

export type NatsOptions = {
  /** Sync every write to disk before it is acknowledged, as in production. Slower; off by default. */
  syncAlways?: boolean;
  /** Where streams live; a new temporary folder by default. */
  storeDir?: string;
  /** A fixed port; by default one that is free. */
  port?: number;
};

export type NatsServer = {
  readonly url: string;
  readonly port: number;
  readonly storeDir: string;
  /** Ends it in order; streams are written out. */
  stop(): Promise<void>;
  /** SIGKILL, as in a crash. */
  kill(): Promise<void>;
  /** Starts it again, if need be stopping it first, on the same port and store. */
  restart(): Promise<void>;
};

/** Starts a real nats-server with JetStream on 127.0.0.1. Give each test file its own. */
export async function startNats(options: NatsOptions = {}): Promise<NatsServer> {
  const program = findProgram('nats-server');
  if (!program) throw new Error('nats-server is neither in .cache/bin nor on the PATH: run sh scripts/setup.sh');
  const folder = tempDir('nats');
  const storeDir = options.storeDir ?? join(folder, 'store');
  const portsDir = join(folder, 'ports');
  mkdirSync(storeDir, { recursive: true });
  mkdirSync(portsDir);

  async function launch(port: number): Promise<{ running: RunningProcess; port: number }> {
    const config = join(folder, 'nats.conf');
    writeFileSync(
      config,
      [
        'host: 127.0.0.1',
        `port: ${port}`,
        `ports_file_dir: ${JSON.stringify(portsDir)}`,
        'jetstream {',
        `  store_dir: ${JSON.stringify(storeDir)}`,
        '  max_memory_store: 256MB',
        '  max_file_store: 4GB',
        ...(options.syncAlways ? ['  sync_interval: always'] : []),
        '}',
        '',
      ].join('\n'),
    );
    const running = await spawnProcess({ command: program!, args: ['-c', config] });
    // Written once it listens, under a name that holds its process id.
    const portsFile = join(portsDir, `${basename(program!)}_${running.pid}.ports`);
    let end: unknown;
    void running.exited.then((exit) => {
      end = exit;
    });
    try {
      const url = await waitFor(
        () => {
          if (end) return 'ended';
          return (JSON.parse(readFileSync(portsFile, 'utf8')) as { nats: string[] }).nats[0];
        },
        { what: 'nats-server to listen', intervalMs: 5 },
      );
      if (url === 'ended') throw new Error(`nats-server did not start:\n${running.lines().slice(-10).join('\n')}`);
      return { running, port: Number(new URL(url).port) };
    } catch (error) {
      await running.kill();
      throw error;
    } finally {
      rmSync(portsFile, { force: true });
    }
  }

  let current = await launch(options.port ?? -1);
  const { port } = current;
  return {
    url: `nats://127.0.0.1:${port}`,
    port,
    storeDir,
    stop: async () => void (await current.running.stop()),
    kill: async () => void (await current.running.kill()),
    restart: async () => {
      await current.running.stop();
      current = await launch(port);
    },
  };
}
