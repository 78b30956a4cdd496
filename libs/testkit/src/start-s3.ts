import { randomBytes, randomUUID } from 'node:crypto';
import { globSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Client } from 'minio';
import { freePorts } from './free-port.ts';
import { findProgram } from './repository.ts';
import { type RunningProcess, runProcess, spawnProcess } from './spawn-process.ts';
import { tempDir } from './temp-dir.ts';
import { waitFor } from './wait-for.ts';

export type S3Server = {
  /** `http://127.0.0.1:PORT`; path-style addresses, region us-east-1. */
  readonly endpoint: string;
  readonly accessKey: string;
  readonly secretKey: string;
  /** Makes a new bucket and returns its name, which starts with `name`. */
  bucket(name: string): Promise<string>;
  /** SIGKILL to the S3 front end. What it stored stays. */
  kill(): Promise<void>;
  /** Starts the front end again on the same port, with all that was stored. */
  restart(): Promise<void>;
  stop(): Promise<void>;
};

const programs = ['ceph-mon', 'ceph-osd', 'radosgw', 'radosgw-admin', 'ceph', 'monmaptool'] as const;

/** Why a test of S3 is skipped; null where it can run. */
export function s3Missing(): string | null {
  const missing = programs.filter((name) => !findProgram(name));
  return missing.length === 0
    ? null
    : `no S3 server here (${missing.join(', ')} missing): run sh scripts/setup.sh --test`;
}

/**
 * Starts a real S3 server on 127.0.0.1: Ceph's object gateway over a monitor and one storage daemon that keeps everything in memory.
 * About two seconds and 150 MB. Several may run at once. Returns null where Ceph is not installed; `s3Missing` says so.
 */
export async function startS3(): Promise<S3Server | null> {
  if (s3Missing() !== null) return null;
  // The ports were free a moment ago; another server may have been faster.
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await startCluster();
    } catch (error) {
      if (attempt === 3) throw error;
    }
  }
}

async function startCluster(): Promise<S3Server> {
  const [monitorV2Port, monitorV1Port, gatewayPort] = (await freePorts(3)) as [number, number, number];
  const folder = tempDir('s3');
  for (const name of ['mon', 'osd', 'rgw']) mkdirSync(join(folder, name));
  const config = join(folder, 'ceph.conf');
  const keyring = join(folder, 'keyring');
  const monmap = join(folder, 'monmap');
  const fsid = randomUUID();
  const osdId = randomUUID();
  const accessKey = 'testaccess';
  const secretKey = randomBytes(20).toString('hex');
  const addresses = `[v2:127.0.0.1:${monitorV2Port},v1:127.0.0.1:${monitorV1Port}]`;
  writeFileSync(keyring, cephKeyring(), { mode: 0o600 });
  writeFileSync(config, cephConfig({ folder, fsid, addresses, keyring, gatewayPort }));

  // CEPH_ARGS or CEPH_CONF of the caller must not lead these programs to another cluster.
  const env = { CEPH_CONF: config, CEPH_ARGS: undefined, PYTHONWARNINGS: 'ignore' };
  const run = (program: (typeof programs)[number], ...args: string[]) =>
    runProcess({ command: findProgram(program)!, args: ['-c', config, ...args], env });
  const daemons: RunningProcess[] = [];
  const start = async (program: (typeof programs)[number], ...args: string[]) => {
    const daemon = await spawnProcess({
      command: findProgram(program)!,
      args: ['-c', config, '-f', ...args],
      env,
      stopTimeoutMs: 2000,
    });
    daemons.push(daemon);
    return daemon;
  };
  const endpoint = `http://127.0.0.1:${gatewayPort}`;
  const startGateway = async () => {
    const gateway = await start('radosgw', '-n', 'client.rgw');
    await until(gateway, 'the S3 gateway to answer', async () => (await fetch(endpoint)).ok);
    return gateway;
  };
  const stop = async () => {
    // It holds nothing worth writing out, and the monitor takes seconds to leave in order.
    await Promise.all(daemons.map((daemon) => daemon.kill()));
    rmSync(folder, { recursive: true, force: true });
  };

  try {
    await runProcess({
      command: findProgram('monmaptool')!,
      args: ['--create', '--fsid', fsid, '--addv', 'a', addresses, monmap],
      env,
    });
    await run('ceph-mon', '--mkfs', '-i', 'a', '--monmap', monmap, '--keyring', keyring);
    await start('ceph-mon', '-i', 'a');
    await run('ceph', '--connect-timeout', '20', 'osd', 'new', osdId, '0');
    await run('ceph-osd', '-i', '0', '--mkfs', '--osd-uuid', osdId);
    await run(
      'ceph',
      '--connect-timeout',
      '20',
      'osd',
      'crush',
      'add',
      'osd.0',
      '1.0',
      'root=default',
      'host=localhost',
    );
    await start('ceph-osd', '-i', '0');
    // Waits by itself until the storage daemon is up.
    const createUser = [
      'user',
      'create',
      '--uid=test',
      '--display-name=test',
      `--access-key=${accessKey}`,
      `--secret-key=${secretKey}`,
    ];
    await run('radosgw-admin', '-n', 'client.rgw', ...createUser);
    let gateway = await startGateway();

    const client = new Client({
      endPoint: '127.0.0.1',
      port: gatewayPort,
      useSSL: false,
      accessKey,
      secretKey,
      region: 'us-east-1',
      pathStyle: true,
    });
    return {
      endpoint,
      accessKey,
      secretKey,
      bucket: async (name) => {
        const bucket = `${name}-${randomBytes(4).toString('hex')}`;
        await client.makeBucket(bucket);
        return bucket;
      },
      kill: async () => void (await gateway.kill()),
      restart: async () => {
        await gateway.kill();
        gateway = await startGateway();
      },
      stop,
    };
  } catch (error) {
    await stop();
    throw error;
  }
}

/** Waits for a daemon to be ready, but not for one that has ended. */
async function until(daemon: RunningProcess, what: string, check: () => Promise<boolean>): Promise<void> {
  let ended = false;
  void daemon.exited.then(() => {
    ended = true;
  });
  await waitFor(() => ended || check(), { what, timeoutMs: 60_000, intervalMs: 25 });
  if (ended) throw new Error(`a daemon ended while waiting for ${what}:\n${daemon.lines().slice(-10).join('\n')}`);
}

/** A secret as Ceph writes it: type 1 (AES), seconds, nanoseconds, length, 16 random bytes; little endian, in base64. */
function cephSecret(): string {
  const key = Buffer.alloc(12 + 16);
  key.writeUInt16LE(1, 0);
  key.writeUInt32LE(Math.floor(Date.now() / 1000), 2);
  key.writeUInt16LE(16, 10);
  randomBytes(16).copy(key, 12);
  return key.toString('base64');
}

function cephKeyring(): string {
  const owner = (name: string, capabilities: Record<string, string>) =>
    [
      `[${name}]`,
      `key = ${cephSecret()}`,
      ...Object.entries(capabilities).map(([daemon, may]) => `caps ${daemon} = "${may}"`),
      '',
    ].join('\n');
  return [
    owner('mon.', { mon: 'allow *' }),
    owner('client.admin', { mon: 'allow *', osd: 'allow *', mgr: 'allow *' }),
    owner('client.rgw', { mon: 'allow *', osd: 'allow *', mgr: 'allow *' }),
    owner('osd.0', { mon: 'allow profile osd', osd: 'allow *' }),
  ].join('\n');
}

/** Debian 13's package looks for the storage daemon's plug-ins under a relative path; naming their folder suits every version. */
function osdClassDir(): string {
  const [folder] = globSync(['/usr/lib/rados-classes', '/usr/lib/*/rados-classes']);
  return folder ? `osd class dir = ${folder}` : '';
}

type ClusterPlan = { folder: string; fsid: string; addresses: string; keyring: string; gatewayPort: number };

// Authentication cannot be switched off: the gateway then fails to start. The short paxos intervals and the single placement
// group are what make a start take one second instead of fourteen.
const cephConfig = ({ folder, fsid, addresses, keyring, gatewayPort }: ClusterPlan) => `[global]
fsid = ${fsid}
mon host = ${addresses}
public addr = 127.0.0.1
keyring = ${keyring}
run dir = ${folder}
admin socket = ${folder}/$name.asok
pid file = ${folder}/$name.pid
log file = ${folder}/$name.log
auth allow insecure global id reclaim = true
mon warn on insecure global id reclaim allowed = false
mon allow pool size one = true
mon data avail crit = 0
mon osd min in ratio = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd mon report interval = 1
paxos propose interval = 0.02
paxos min wait = 0.01
[mon.a]
mon data = ${folder}/mon
[osd.0]
osd data = ${folder}/osd
osd objectstore = memstore
${osdClassDir()}
memstore device bytes = 8G
[client.rgw]
rgw data = ${folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:${gatewayPort}
rgw run sync thread = false
rgw enable ops log = false
rgw enable usage log = false
`;
