import type { Server } from 'nice-grpc';
import { HealthDefinition, HealthServiceImpl, HealthState } from 'nice-grpc-server-health';

/**
 * What grpc.health.v1 answers. `live`: the process works at all (serving from the start). `ready` and `''`: it may be
 * sent requests (not serving until set). Every bound service answers as `''` does.
 */
export type Health = {
  set(name: string, serving: boolean): void;
  isServing(name: string): boolean;
  /** Makes `names` answer as `''`; a server does this for its services. */
  follow(names: readonly string[]): void;
  /** Adds the health service to a server. */
  addTo(server: Server): void;
};

export function createHealth(): Health {
  const state = HealthState();
  // One listener per watcher; a busy mesh has more than the default ten.
  state.setMaxListeners(0);
  const followers: string[] = [];
  const set = (name: string, serving: boolean) => {
    for (const each of name === '' ? [name, ...followers] : [name])
      state.setStatus(serving ? 'healthy' : 'unhealthy', each);
  };
  const isServing = (name: string) => state.getStatus(name) === 'healthy';
  set('', false);
  set('ready', false);
  set('live', true);
  return {
    set,
    isServing,
    follow: (names) => {
      followers.push(...names);
      set('', isServing(''));
    },
    addTo: (server) => server.add(HealthDefinition, HealthServiceImpl(state)),
  };
}
