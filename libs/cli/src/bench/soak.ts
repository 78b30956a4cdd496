import { setTimeout as sleep } from 'node:timers/promises';
import type { inference } from '@medmesh/proto';
import type { Client } from '@medmesh/rpc';
import { uniforms } from './random.ts';
import { askAtRandom, type SoakCaller, type SoakModel } from './soak-requests.ts';

export type SoakOptions = {
  /** Each under a tenant of its own, or all under one. */
  callers: readonly SoakCaller[];
  admin: Client<inference.InferenceAdminServiceDefinition>;
  model: SoakModel;
  seconds: number;
  /** Of the same load before the first look at memory: what is loaded, compiled and touched once is not a leak. */
  warmUpSeconds: number;
  /** Requests at once. */
  concurrency: number;
  /** Requests a second on average, at random times, as far as `concurrency` lets them; without it one follows the other. */
  perSecond?: number | undefined;
  seed: number;
  /** Between looks at the server. */
  sampleMs: number;
  onSample?: (sample: SoakSample) => void;
};

export type SoakSample = {
  seconds: number;
  requests: number;
  running: number;
  usedBlocks: number;
  residentBytes: number;
};

export type SoakReport = {
  seconds: number;
  requests: number;
  /** How often each kind of request ended with each status. */
  ended: Record<string, Record<string, number>>;
  /** What the contract does not allow, each once, with how often. */
  wrong: Record<string, number>;
  /** Cache blocks that are held although nothing runs. */
  leakedBlocks: number;
  /** Requests that the server still counts although all have ended. */
  leftRunning: number;
  /** Of the serving process, with nothing running: after the warm-up and at the end. */
  residentBytes: { warm: number; end: number };
  samples: SoakSample[];
};

/** How long the server may take to notice that the last requests have ended. */
const settleMs = 120_000;

/** Until the next of requests that come so often by chance. */
const waitMs = (random: () => number, perSecond: number) => (-Math.log(1 - random()) / perSecond) * 1000;

/**
 * Sends a mix of requests at random: answers read whole, left in the middle, cancelled, past their deadline, read too slowly, several at once, scored,
 * constrained, and adapters that come and go. Every request must end with exactly one status that it may end with; in the end nothing runs, no cache
 * block is held, and memory is where it was after the warm-up.
 */
export async function soak(o: SoakOptions, signal: AbortSignal): Promise<SoakReport> {
  const ended: SoakReport['ended'] = {};
  const wrong: SoakReport['wrong'] = {};
  const samples: SoakSample[] = [];
  const begin = performance.now();
  const elapsed = () => (performance.now() - begin) / 1000;
  let requests = 0;

  const look = async (): Promise<SoakSample> => {
    const load = await o.admin.getLoad({});
    const sample = {
      seconds: elapsed(),
      requests,
      running: load.runningRequestCount + load.waitingRequestCount,
      usedBlocks: load.usedKvBlockCount,
      residentBytes: load.residentMemoryBytes,
    };
    samples.push(sample);
    o.onSample?.(sample);
    return sample;
  };

  const settled = async (): Promise<SoakSample> => {
    const deadline = performance.now() + settleMs;
    for (;;) {
      const late = performance.now() > deadline;
      // A server that is starved of processor time may not answer at once; that it does in the end is what counts.
      const sample = await look().catch((error: unknown) => {
        if (late) throw error;
      });
      if (sample !== undefined && ((sample.running === 0 && sample.usedBlocks === 0) || late)) return sample;
      await sleep(100, undefined, { signal });
    }
  };

  /** The mix for some time, then nothing. */
  const run = async (seconds: number, seed: number): Promise<SoakSample> => {
    const until = performance.now() + seconds * 1000;
    const worker = async (index: number) => {
      const random = uniforms(seed + index);
      const caller = o.callers[index % o.callers.length];
      if (caller === undefined) return;
      const deps = { caller, admin: o.admin, model: o.model, random, sleep: (ms: number) => sleep(ms) };
      while (performance.now() < until && !signal.aborted) {
        if (o.perSecond !== undefined) await sleep(waitMs(random, o.perSecond / o.concurrency));
        const { kind, status, wrong: fault } = await askAtRandom(deps);
        requests += 1;
        const counts = ended[kind] ?? {};
        ended[kind] = counts;
        counts[status] = (counts[status] ?? 0) + 1;
        if (fault !== undefined) {
          const what = `${kind}: ${fault}`;
          wrong[what] = (wrong[what] ?? 0) + 1;
          // A server that is gone would be asked without end.
          await sleep(100);
        }
      }
    };
    const stopped = new AbortController();
    const sampling = (async () => {
      while (!stopped.signal.aborted) {
        await sleep(o.sampleMs, undefined, { signal: stopped.signal }).catch(() => undefined);
        if (!stopped.signal.aborted) await look().catch(() => undefined);
      }
    })();
    await Promise.all(Array.from({ length: o.concurrency }, (_, i) => worker(i)));
    stopped.abort();
    await sampling;
    return await settled();
  };

  const warm = await run(o.warmUpSeconds, o.seed);
  const end = await run(o.seconds, o.seed + 1_000);
  signal.throwIfAborted();
  return {
    seconds: elapsed(),
    requests,
    ended,
    wrong,
    leakedBlocks: end.usedBlocks,
    leftRunning: end.running,
    residentBytes: { warm: warm.residentBytes, end: end.residentBytes },
    samples,
  };
}
