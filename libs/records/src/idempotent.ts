import { createHash, randomUUID } from 'node:crypto';
import { Failure, invalidField } from '@medmesh/errors';
import { pause } from '@medmesh/events';
import type { Bucket, Codec, Entry } from './bucket.ts';
import type { Records } from './open-records.ts';

const day = 24 * 60 * 60 * 1000;
/** Answers are kept for 8 days: the contract says at least 7. */
const keptMs = 8 * day;
const bucketName = 'requests';

const defaultClaimMs = 20_000;
const defaultWaitMs = 20_000;
const firstPauseMs = 10;
const longestPauseMs = 250;

const uuid = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

export type IdempotentOptions<Res> = {
  /** Who calls; the same id of two callers is two requests. */
  principal?: string;
  /** Full method name, e.g. `medmesh.model.v1.ModelService/ImportModel`. */
  method: string;
  /** The request's `request_id`. Empty: the function just runs. */
  requestId: string;
  /** The request's bytes with `request_id` left as it is; compared by digest, never stored. */
  body: Uint8Array;
  resCodec: Codec<Res>;
  signal?: AbortSignal;
  /** How long a claim lives without being renewed, i.e. how long after a crash another may take over. Default 20 s. */
  claimMs?: number;
  /** How long a repeat waits for the answer of the first. Default 20 s. */
  waitMs?: number;
};

/** What the function is told: the signal aborts if somebody else took the request over. */
export type Claim = { readonly signal: AbortSignal; readonly takenOver: boolean };

type RequestRecord = {
  /** Digest of the request's bytes. */
  body: string;
  /** Whoever runs the function now. */
  owner: string;
  /** While it runs: when the claim lapses unless renewed. */
  claimedUntilMs: number;
  /** Once it is done: the answer's bytes. */
  answer?: string;
};

const codec: Codec<RequestRecord> = {
  encode: (record) => Buffer.from(JSON.stringify(record)),
  decode: (bytes) => JSON.parse(Buffer.from(bytes).toString()) as RequestRecord,
};

const buckets = new WeakMap<Records, Promise<Bucket<RequestRecord>>>();

function openBucket(records: Records): Promise<Bucket<RequestRecord>> {
  let bucket = buckets.get(records);
  if (bucket === undefined) {
    bucket = records.bucket(bucketName, codec, { maxAgeMs: keptMs });
    // A failed opening must not be remembered.
    bucket.catch(() => buckets.delete(records));
    buckets.set(records, bucket);
  }
  return bucket;
}

/**
 * Runs `fn` once for a `request_id`, whoever repeats the request and wherever: a repeat gets the first answer, also while the first still runs.
 * If `fn` throws, nothing is recorded and a repeat tries again. If the process dies inside `fn`, the claim lapses and a repeat runs `fn` again:
 * `fn` must find what its forerunner left, which it does when the names it creates follow from the request.
 * @throws Failure `invalid_argument` REQUEST_ID_REUSED for another body, FIELD_INVALID for an id that is not a UUID;
 *   `aborted` REQUEST_IN_PROGRESS when the first still runs after `waitMs`.
 */
export async function idempotent<Res>(
  records: Records,
  o: IdempotentOptions<Res>,
  fn: (claim: Claim) => Promise<Res>,
): Promise<Res> {
  if (o.requestId === '') return fn({ signal: o.signal ?? new AbortController().signal, takenOver: false });
  if (!uuid.test(o.requestId))
    throw invalidField('request_id', 'not a UUID; send a random UUID (version 4), or leave it empty');

  const bucket = await openBucket(records);
  const key = digest(JSON.stringify([o.principal ?? '', o.method, o.requestId.toLowerCase()]));
  const body = digest(o.body);
  const deadline = performance.now() + (o.waitMs ?? defaultWaitMs);
  for (let pauseMs = firstPauseMs; ; pauseMs = Math.min(2 * pauseMs, longestPauseMs)) {
    const claimed = await claim(bucket, key, body, o);
    if ('entry' in claimed) return run(bucket, claimed.entry, claimed.takenOver, o, fn);
    const { seen } = claimed;
    if (seen !== undefined && seen.body !== body) throw reused(o.requestId);
    if (seen?.answer !== undefined) return o.resCodec.decode(Buffer.from(seen.answer, 'base64'));
    if (performance.now() + pauseMs > deadline) {
      throw new Failure(
        'aborted',
        'the first request with this request_id still runs; repeat it later for the answer',
        {
          reason: 'REQUEST_IN_PROGRESS',
          retryAfterMs: 1000,
        },
      );
    }
    await pause(pauseMs, o.signal);
  }
}

type Claimed = { entry: Entry<RequestRecord>; takenOver: boolean } | { seen: RequestRecord | undefined };

/** Takes the request if nobody has it or its owner's claim has lapsed; otherwise says what is recorded. */
async function claim(
  bucket: Bucket<RequestRecord>,
  key: string,
  body: string,
  o: { claimMs?: number },
): Promise<Claimed> {
  const mine: RequestRecord = { body, owner: randomUUID(), claimedUntilMs: Date.now() + (o.claimMs ?? defaultClaimMs) };
  const current = await bucket.get(key);
  try {
    if (current === undefined) return { entry: await bucket.create(key, mine), takenOver: false };
    const lapsed = current.value.answer === undefined && current.value.claimedUntilMs < Date.now();
    if (!lapsed || current.value.body !== body) return { seen: current.value };
    return { entry: await bucket.update(key, mine, current.revision), takenOver: true };
  } catch (error) {
    // Somebody was faster; the next round sees whom.
    if (error instanceof Failure && (error.code === 'already_exists' || error.code === 'aborted'))
      return { seen: undefined };
    throw error;
  }
}

async function run<Res>(
  bucket: Bucket<RequestRecord>,
  claimed: Entry<RequestRecord>,
  takenOver: boolean,
  o: IdempotentOptions<Res>,
  fn: (claim: Claim) => Promise<Res>,
): Promise<Res> {
  const claimMs = o.claimMs ?? defaultClaimMs;
  const lost = new AbortController();
  let entry = claimed;
  let renewal: Promise<void> = Promise.resolve();
  const renew = async (): Promise<void> => {
    try {
      entry = await bucket.update(entry.key, { ...entry.value, claimedUntilMs: Date.now() + claimMs }, entry.revision);
    } catch (error) {
      if (error instanceof Failure && error.code === 'aborted') lost.abort(error);
      // Otherwise the broker is away: the claim lapses if that lasts.
    }
  };
  const timer = setInterval(() => {
    renewal = renewal.then(renew);
  }, claimMs / 3);
  const signal = o.signal === undefined ? lost.signal : AbortSignal.any([o.signal, lost.signal]);
  let answer: Res;
  try {
    answer = await fn({ signal, takenOver });
  } catch (error) {
    clearInterval(timer);
    await renewal;
    // Given back at once. If even that fails the claim lapses by itself; the caller must see what fn said.
    await bucket.delete(entry.key, entry.revision).catch(() => undefined);
    throw error;
  }
  clearInterval(timer);
  await renewal;
  const bytes = Buffer.from(o.resCodec.encode(answer)).toString('base64');
  try {
    await bucket.update(entry.key, { ...entry.value, answer: bytes }, entry.revision);
    return answer;
  } catch (error) {
    if (!(error instanceof Failure && error.code === 'aborted')) throw error;
    // The claim lapsed under us and another finished first: there is one answer, and it is theirs.
    const recorded = (await bucket.get(entry.key))?.value.answer;
    if (recorded === undefined) throw error;
    return o.resCodec.decode(Buffer.from(recorded, 'base64'));
  }
}

const digest = (data: string | Uint8Array): string => createHash('sha256').update(data).digest('hex');

const reused = (requestId: string): Failure => {
  const description = `${requestId} was used for another request; send a new UUID for each new request`;
  return new Failure('invalid_argument', `request_id: ${description}`, {
    reason: 'REQUEST_ID_REUSED',
    fields: [{ field: 'request_id', description }],
  });
};
