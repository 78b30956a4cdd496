import type { GenerationLoad, Sampling } from '@medmesh/engine';
import type { Logger } from '@medmesh/log';
import type { Health } from '@medmesh/rpc';
import type { Base } from './bases.ts';

export type EngineWatch = {
  /** Looks once at every base: its heartbeat, and when it is due its known answer. */
  check(): Promise<void>;
  stop(): void;
};

export type EngineWatchDeps = {
  bases: () => readonly Base[];
  health: Health;
  log: Logger;
  now: () => number;
  /** Told at every look. */
  onLoad: (base: Base, load: GenerationLoad) => void;
};

const lookEveryMs = 1_000;
/** So long without a step, while there is work, and the engine thread is dead. */
const stallMs = 60_000;
/** How often an idle base answers its question again. */
const answerEveryMs = 10_000;
/** Further from its first answer than another batch explains. */
const maxLogprobDifference = 0.05;

const oneToken: Sampling = {
  temperature: 0,
  topP: 1,
  topK: 0,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  seed: 0n,
  maxTokens: 1,
  stopTokenIds: [],
};

type Known = { tokenId: number; logprob: number };
type Seen = { steps: number; movedAt: number; known?: Known; answeredAt: number; right: boolean };

/** Tokens of the question: any will do, as long as they are always the same. */
const questionLength = 8;

async function answerOf({ model }: Base): Promise<Known> {
  const tokens = Uint32Array.from({ length: questionLength }, (_, i) => (i * 7 + 1) % model.info.vocabSize);
  for await (const { tokenId, logprob } of model.generate({ tokens, sampling: oneToken })) return { tokenId, logprob };
  throw new Error('the engine ended without a token');
}

/**
 * Keeps `live` and `ready` true to the engine: `live` while its thread makes steps when there is work, `ready` while each base in memory still gives
 * the answer that it gave first, by a real step through the scheduler.
 */
export function watchEngine(deps: EngineWatchDeps): EngineWatch {
  const seen = new WeakMap<Base, Seen>();
  let live = true;
  let ready = true;
  let stopped = false;

  async function look(base: Base): Promise<{ live: boolean; ready: boolean }> {
    const now = deps.now();
    const state = seen.get(base) ?? { steps: -1, movedAt: now, answeredAt: Number.NEGATIVE_INFINITY, right: true };
    seen.set(base, state);
    const load = base.model.generationLoad();
    if (load !== undefined) {
      deps.onLoad(base, load);
      if (load.steps !== state.steps || load.running + load.waiting === 0) state.movedAt = now;
      state.steps = load.steps;
    }
    const idle = load === undefined || load.running + load.waiting === 0;
    if (idle && now - state.answeredAt >= answerEveryMs) {
      state.answeredAt = now;
      const answer = await answerOf(base);
      state.known ??= answer;
      state.right =
        answer.tokenId === state.known.tokenId &&
        Math.abs(answer.logprob - state.known.logprob) <= maxLogprobDifference;
    }
    return { live: now - state.movedAt < stallMs, ready: state.right };
  }

  const check = async () => {
    const results = await Promise.all(
      deps.bases().map((base) =>
        look(base).catch((error: unknown) => {
          // A base that is being unloaded cannot answer; one that stays and cannot is broken, and the next look says so again.
          deps.log.warn({ err: error, base: base.record.name }, 'a base did not give its known answer');
          return { live: true, ready: !deps.bases().includes(base) };
        }),
      ),
    );
    if (stopped) return;
    const nowLive = results.every((r) => r.live);
    const nowReady = nowLive && results.every((r) => r.ready);
    if (nowLive !== live) {
      deps.log.error({ live: nowLive }, 'the engine thread stalled, or moves again');
      deps.health.set('live', nowLive);
    }
    if (nowReady !== ready) {
      deps.log.error({ ready: nowReady }, 'the known answer changed, or is right again');
      for (const name of ['', 'ready']) deps.health.set(name, nowReady);
    }
    live = nowLive;
    ready = nowReady;
  };

  let checking = false;
  const timer = setInterval(() => {
    if (checking) return;
    checking = true;
    void check().finally(() => {
      checking = false;
    });
  }, lookEveryMs);
  timer.unref();
  return {
    check,
    stop() {
      stopped = true;
      clearInterval(timer);
    },
  };
}
