import { lookup } from 'node:dns/promises';
import { Failure, toFailure } from '@medmesh/errors';
import { inference, lifecycle } from '@medmesh/proto';
import { type Client, createClient, openChannel, toStatus } from '@medmesh/rpc';
import { getAdapter } from './adapters.ts';
import type { LifecycleDeps } from './deps.ts';

export const deployAdapterKind = 'adapter.deploy';

const State = lifecycle.AdapterDeployment_State;
type Deployment = lifecycle.AdapterDeployment;
type Admin = Client<inference.InferenceAdminServiceDefinition>;

/** A server fetches the adapter and replays its probes in this time, or has failed. */
const loadDeadlineMs = 10 * 60_000;
const askDeadlineMs = 10_000;
/** How long an adapter that is taken out again may be used by the requests that have it. */
const unloadDeadlineMs = 60_000;

/** Every address behind `host:port` pairs: one name may stand for many servers. Failure `failed_precondition` for none. */
async function serversAt(addresses: string): Promise<string[]> {
  const servers = new Set<string>();
  for (const address of addresses.split(',').map((part) => part.trim())) {
    if (address === '') continue;
    const at = address.lastIndexOf(':');
    const [host, port] = [address.slice(0, at), address.slice(at + 1)];
    const found = await lookup(host.replace(/^\[|\]$/g, ''), { all: true }).catch((cause: unknown) => {
      throw new Failure('unavailable', `the name ${host} has no address now`, { reason: 'NAME_UNRESOLVED', cause });
    });
    for (const { address: ip, family } of found) servers.add(family === 6 ? `[${ip}]:${port}` : `${ip}:${port}`);
  }
  if (servers.size === 0)
    throw new Failure('failed_precondition', 'no inference server is known; start lifecycle with INFERENCE_ADDRS', {
      reason: 'NO_INFERENCE_SERVERS',
    });
  return [...servers].toSorted();
}

/** Whether the server holds the base, in any form. */
async function holdsBase(admin: Admin, baseDigest: string, signal: AbortSignal): Promise<boolean> {
  try {
    await admin.getModelInfo({ base: baseDigest }, { deadlineMs: askDeadlineMs, signal });
    return true;
  } catch (error) {
    if (toFailure(error).code === 'not_found') return false;
    throw error;
  }
}

/** Loads the adapter into one server and keeps it there; `show` gets what becomes of it. Nothing but the signal's abort is thrown. */
async function deployTo(
  admin: Admin,
  adapter: lifecycle.Adapter,
  deployment: Deployment,
  show: () => void,
  signal: AbortSignal,
): Promise<void> {
  const set = (change: Partial<Deployment>) => {
    Object.assign(deployment, change);
    show();
  };
  try {
    if (!(await holdsBase(admin, adapter.baseDigest, signal))) {
      set({ state: State.NOT_SERVED });
      return;
    }
    const { adapters } = await admin.listLoadedAdapters({}, { deadlineMs: askDeadlineMs, signal });
    set({ state: State.LOADING, alreadyLoaded: adapters.some(({ digest }) => digest === adapter.digest) });
    const request = { adapter: adapter.name, pinned: true };
    for await (const loaded of admin.loadAdapter(request, { deadlineMs: loadDeadlineMs, signal }))
      if (loaded.state === inference.LoadState.READY)
        set({
          state: State.READY,
          parityMaxDifference: loaded.parityMaxDifference,
          parityMeanDifference: loaded.parityMeanDifference,
          parityTokenCount: loaded.parityTokenCount,
        });
  } catch (error) {
    signal.throwIfAborted();
    set({ state: State.FAILED, error: toStatus(toFailure(error)) });
  }
}

/** What the servers together make of it: nothing if all that hold the base have it, else the Failure that says where not. */
function problemOf(adapter: lifecycle.Adapter, deployments: readonly Deployment[]): Failure | undefined {
  const failed = deployments.filter(({ state }) => state === State.FAILED);
  const ready = deployments.filter(({ state }) => state === State.READY);
  if (failed.length > 0) {
    const why = failed.map(({ server, error }) => `${server}: ${error?.message ?? ''}`).join('; ');
    return new Failure(
      'failed_precondition',
      `${adapter.name} is ready on ${ready.length} of ${ready.length + failed.length} servers; ${why}`,
      { reason: 'DEPLOYMENT_INCOMPLETE', metadata: { servers: failed.map(({ server }) => server).join(',') } },
    );
  }
  if (ready.length > 0) return undefined;
  return new Failure(
    'failed_precondition',
    `none of ${deployments.length} inference servers holds ${adapter.baseModel}; load it there first (LoadBase, or PRELOAD_BASES)`,
    { reason: 'BASE_NOT_SERVED' },
  );
}

/** Takes the adapter out of the servers into which this deployment has loaded it. One that is still loading it lets go of it by itself, as its caller left. */
async function takeOut(
  admins: readonly Admin[],
  adapter: lifecycle.Adapter,
  deployments: readonly Deployment[],
): Promise<void> {
  const begun = [State.LOADING, State.READY]; // what became ready as its caller left is still shown as loading
  const ours = admins.filter(
    (_, i) => begun.some((state) => state === deployments[i]?.state) && !deployments[i]?.alreadyLoaded,
  );
  const o = { deadlineMs: unloadDeadlineMs };
  await Promise.allSettled(ours.map((admin) => admin.unloadAdapter({ adapter: adapter.digest }, o)));
}

/**
 * Makes the adapter ready on every server that holds its base, all at once. `update` gets the state of each server whenever one changes. Doing it again
 * changes nothing where it is loaded. When the signal aborts, servers that did not have it before lose it again.
 */
export async function deployAdapter(
  deps: LifecycleDeps & { inferenceAddresses: string },
  request: lifecycle.DeployAdapterRequest,
  update: (metadata: lifecycle.DeployAdapterMetadata) => Promise<void>,
  signal: AbortSignal,
): Promise<lifecycle.Adapter> {
  const adapter = await servableAdapter(deps, request.name);
  const servers = await serversAt(deps.inferenceAddresses);
  const deployments = servers.map((server) =>
    lifecycle.AdapterDeployment.fromPartial({ server, state: State.PENDING }),
  );
  // One update after the other, each of what is true then.
  let shown = update({ servers: deployments });
  const show = () => {
    shown = shown.then(() => update({ servers: deployments }));
    shown.catch(() => undefined);
  };
  const open = servers.map((server) => openChannel(server));
  const admins = open.map((channel) => createClient(inference.InferenceAdminServiceDefinition, channel));
  try {
    const ends = await Promise.allSettled(
      admins.map((admin, i) => deployTo(admin, adapter, deployments[i] as Deployment, show, signal)),
    );
    await shown;
    if (signal.aborted) {
      // A process that only stops leaves the rest to the next one.
      if (toFailure(signal.reason).reason === 'OPERATION_CANCELLED') await takeOut(admins, adapter, deployments);
      throw signal.reason;
    }
    for (const end of ends) if (end.status === 'rejected') throw end.reason;
    const problem = problemOf(adapter, deployments);
    if (problem !== undefined) throw problem;
    deps.log.info({ adapter: adapter.name, digest: adapter.digest, servers: servers.length }, 'adapter deployed');
    return adapter;
  } finally {
    for (const channel of open) channel.close();
  }
}

/** The adapter's record. Failure `failed_precondition` for one that must not be served. */
export async function servableAdapter(deps: LifecycleDeps, name: string): Promise<lifecycle.Adapter> {
  const adapter = await getAdapter(deps, { name });
  if (adapter.state === lifecycle.Adapter_State.REVOKED)
    throw new Failure('failed_precondition', `${name} is revoked and must not be served`, {
      reason: 'ADAPTER_REVOKED',
    });
  return adapter;
}
