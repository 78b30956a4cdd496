import { setTimeout as sleep } from 'node:timers/promises';
import type { MedmeshClient } from '@medmesh/client';
import { toFailure } from '@medmesh/errors';
import { type Spread, spreadOf } from './percentiles.ts';
import { uniforms } from './random.ts';

/** One measurement: so many requests, either sent at a rate whatever comes back, or so many at once. */
export type Load = {
  requests: number;
  arrival: { kind: 'rate'; perSecond: number } | { kind: 'concurrency'; count: number };
  promptTokens: number;
  newTokens: number;
  /** Tokens that all prompts begin with, for the prefix cache. */
  sharedTokens: number;
  /** Names of adapters, taken in turn; an empty name is the base alone. */
  adapters: readonly string[];
  base: string;
  vocabularySize: number;
  seed: number;
};

export type LoadReport = {
  arrival: Load['arrival'];
  promptTokens: number;
  newTokens: number;
  sharedTokens: number;
  adapters: number;
  answered: number;
  /** Refusals and failures by their reason. */
  failed: Record<string, number>;
  seconds: number;
  requestsPerSecond: number;
  newTokensPerSecond: number;
  promptTokensPerSecond: number;
  /** Share of the prompts that the server had read before. */
  cachedShare: number;
  /** From the time a request was due to its first token: a late start counts against the server that caused it. */
  timeToFirstTokenMs: Spread | undefined;
  /** Between tokens after the first, one mean for each request. */
  timePerOutputTokenMs: Spread | undefined;
  latencyMs: Spread | undefined;
  /** New tokens a second of the engine alone under the same load, where it was asked for. */
  engineTokensPerSecond?: number;
};

type Outcome = { first: number; perToken: number | undefined; latency: number; tokens: number; cached: number };

/** Milliseconds after the start at which each request is due: a Poisson process of the rate. */
export function arrivals(count: number, perSecond: number, random: () => number): number[] {
  let at = 0;
  return Array.from({ length: count }, () => {
    at += (-Math.log(1 - random()) / perSecond) * 1000;
    return at;
  });
}

/** The prompts of a load, the same for the same seed. */
export function promptsOf(load: Load): number[][] {
  const random = uniforms(load.seed);
  const token = () => Math.floor(random() * load.vocabularySize);
  const shared = Array.from({ length: load.sharedTokens }, token);
  return Array.from({ length: load.requests }, () => [
    ...shared,
    ...Array.from({ length: load.promptTokens - load.sharedTokens }, token),
  ]);
}

/** As many requests at once as the load has, with other prompts and few tokens: on a GPU, what the first steps of a batch capture is not of the load. */
export function warmUpOf(load: Load): Load {
  const requests = load.arrival.kind === 'concurrency' ? load.arrival.count : 1;
  return { ...load, requests, newTokens: Math.min(8, load.newTokens), seed: load.seed + 1_000_000 };
}

/** Runs one load through gRPC, as any client would, and measures what a caller sees. */
export async function runLoad(client: MedmeshClient, load: Load, signal: AbortSignal): Promise<LoadReport> {
  const prompts = promptsOf(load);
  const outcomes: Outcome[] = [];
  const failed: Record<string, number> = {};

  const ask = async (index: number, due: number): Promise<void> => {
    const adapter = load.adapters[index % Math.max(1, load.adapters.length)] ?? '';
    let first: number | undefined;
    let tokens = 0;
    let cached = 0;
    try {
      const events = client.raw.inference.generate(
        {
          model: { base: adapter === '' ? load.base : '', adapter },
          input: { $case: 'tokens', value: { ids: prompts[index] ?? [] } },
          sampling: { maxTokens: load.newTokens, ignoreEos: true },
        },
        { signal },
      );
      for await (const { event } of events) {
        if (event?.$case === 'delta') {
          if (event.value.tokenIds.length > 0) first ??= performance.now();
          tokens += event.value.tokenIds.length;
        } else if (event?.$case === 'finished') {
          cached = event.value.usage?.cachedTokenCount ?? 0;
        }
      }
      const end = performance.now();
      const begun = first ?? end;
      outcomes.push({
        first: begun - due,
        perToken: tokens > 1 ? (end - begun) / (tokens - 1) : undefined,
        latency: end - due,
        tokens,
        cached,
      });
    } catch (error) {
      signal.throwIfAborted();
      const { reason } = toFailure(error);
      failed[reason] = (failed[reason] ?? 0) + 1;
    }
  };

  const start = performance.now();
  if (load.arrival.kind === 'rate') {
    const due = arrivals(load.requests, load.arrival.perSecond, uniforms(load.seed + 1));
    await Promise.all(
      due.map(async (at, index) => {
        await sleep(Math.max(0, start + at - performance.now()), undefined, { signal });
        await ask(index, start + at);
      }),
    );
  } else {
    let next = 0;
    const worker = async () => {
      while (next < load.requests) await ask(next++, performance.now());
    };
    await Promise.all(Array.from({ length: load.arrival.count }, worker));
  }
  const seconds = (performance.now() - start) / 1000;
  const total = (read: (o: Outcome) => number) => outcomes.reduce((sum, outcome) => sum + read(outcome), 0);
  const promptTokens = outcomes.length * load.promptTokens;
  return {
    arrival: load.arrival,
    promptTokens: load.promptTokens,
    newTokens: load.newTokens,
    sharedTokens: load.sharedTokens,
    adapters: load.adapters.filter((name) => name !== '').length,
    answered: outcomes.length,
    failed,
    seconds,
    requestsPerSecond: outcomes.length / seconds,
    newTokensPerSecond: total((o) => o.tokens) / seconds,
    promptTokensPerSecond: promptTokens / seconds,
    cachedShare: promptTokens === 0 ? 0 : total((o) => o.cached) / promptTokens,
    timeToFirstTokenMs: spreadOf(outcomes.map((o) => o.first)),
    timePerOutputTokenMs: spreadOf(outcomes.flatMap((o) => (o.perToken === undefined ? [] : [o.perToken]))),
    latencyMs: spreadOf(outcomes.map((o) => o.latency)),
  };
}
