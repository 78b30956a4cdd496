import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type AdapterDescription, adapterDescriptionFile, names, parseAdapterDescription } from '@medmesh/catalog';
import type { Adapter as EngineAdapter } from '@medmesh/engine';
import { Failure, notFound, toFailure } from '@medmesh/errors';
import { inference, lifecycle } from '@medmesh/proto';
import { keyOf } from '@medmesh/records';
import { withSpan } from '@medmesh/telemetry';
import { type ResolvedTemplate, resolveCanonicalTemplate } from '@medmesh/text';
import type { Base, BaseDeps, Bases } from './bases.ts';
import { findByDigest } from './find-by-digest.ts';
import { type Parity, replayProbes } from './replay-probes.ts';
import { createResidentSet, type Lease, type ResidentSet } from './resident.ts';

const State = inference.LoadState;

/** An adapter in memory, proven equal to what was trained. Holds its base for as long as it lives. */
export type LoadedAdapter = {
  record: lifecycle.Adapter;
  description: AdapterDescription;
  engine: EngineAdapter;
  template: ResolvedTemplate;
  parity: Parity;
  readyTime: Date;
  base: Lease<Base>;
};

export type Adapters = {
  /** Finds a servable adapter's record by name or digest. */
  resolve(ref: string): Promise<lifecycle.Adapter>;
  acquire(record: lifecycle.Adapter, onState?: (state: inference.LoadState) => void): Promise<Lease<LoadedAdapter>>;
  readonly resident: ResidentSet<LoadedAdapter>;
};

/** How long an adapter that could not be loaded is refused without trying again. */
const failureTtlMs = 30_000;
const bytesPerWeight = 4;

const baseMismatch = (record: lifecycle.Adapter, trainedOn: string): Failure =>
  new Failure(
    'failed_precondition',
    `${record.name} was trained on base ${trainedOn}, its record says ${record.baseDigest}`,
    { reason: 'ADAPTER_BASE_MISMATCH' },
  );

const templateMismatch = (record: lifecycle.Adapter): Failure =>
  new Failure(
    'failed_precondition',
    `${record.name} was trained with another template or tokenizer than its files hold`,
    { reason: 'TEMPLATE_MISMATCH' },
  );

/** Files that are in memory already were loaded for another record of the same digest; this one must say the same of them. */
function checkRecord(record: lifecycle.Adapter, lease: Lease<LoadedAdapter>): void {
  const { description, template, base } = lease.value;
  const problem =
    description.base.digest !== record.baseDigest
      ? baseMismatch(record, description.base.digest)
      : template.digest !== record.templateDigest || base.value.tokenizer.digest !== record.tokenizerDigest
        ? templateMismatch(record)
        : undefined;
  if (problem === undefined) return;
  lease.release();
  throw problem;
}

export function createAdapters(deps: BaseDeps, bases: Bases, now: () => number): Adapters {
  const failures = new Map<string, { failure: Failure; digest: string; until: number }>();
  const resident = createResidentSet<LoadedAdapter>({
    maxBytes: deps.config.ADAPTER_MEMORY_BYTES,
    maxCount: Number.POSITIVE_INFINITY,
    async unload(adapter) {
      await adapter.engine.close();
      adapter.base.release();
      deps.log.info({ adapter: adapter.record.name }, 'adapter unloaded');
    },
  });

  /** Fetch, check, load, replay; only then is it there. */
  async function load(record: lifecycle.Adapter, onState: (state: inference.LoadState) => void) {
    onState(State.FETCHING);
    const { dir, release } = await deps.cache.materialize(await deps.store.getManifest(record.digest), deps.signal);
    try {
      onState(State.VALIDATING);
      const description = parseAdapterDescription(await readFile(join(dir, adapterDescriptionFile), 'utf8'));
      if (description.base.digest !== record.baseDigest) throw baseMismatch(record, description.base.digest);
      const base = await bases.acquire(await bases.resolve(record.baseDigest), description.base.quantization);
      try {
        const template = resolveCanonicalTemplate(description.template, base.value.tokenizer);
        if (template.digest !== record.templateDigest || base.value.tokenizer.digest !== record.tokenizerDigest) {
          throw templateMismatch(record);
        }
        const engine = await base.value.model.loadAdapter(dir);
        try {
          onState(State.PROBING);
          const parity = await replayProbes(
            base.value.model,
            engine,
            description.probes,
            deps.config.PARITY_MAX_MEAN_DIFFERENCE,
            record.name,
            deps.signal,
          );
          deps.log.info({ adapter: record.name, digest: record.digest, ...parity }, 'adapter ready');
          const value: LoadedAdapter = {
            record,
            description,
            engine,
            template,
            parity,
            readyTime: new Date(now()),
            base,
          };
          return { value, bytes: engine.parameterCount * bytesPerWeight };
        } catch (error) {
          await engine.close();
          throw error;
        }
      } catch (error) {
        base.release();
        throw error;
      }
    } finally {
      // The engine has its own copy of an adapter's weights; only a base stays mapped.
      release();
    }
  }

  return {
    resident,
    async resolve(ref) {
      let record: lifecycle.Adapter | undefined;
      if (ref.startsWith('sha256:')) {
        const visible = (adapter: lifecycle.Adapter) => adapter.state !== lifecycle.Adapter_State.UNSPECIFIED;
        record = (await findByDigest(deps.catalog.adapters, ref, visible))?.value;
      } else {
        names.adapter.parse(ref);
        record = (await deps.catalog.adapters.get(keyOf(ref)))?.value;
      }
      // A pending record belongs to a job that has not succeeded yet: the adapter does not exist.
      if (record === undefined || record.state === lifecycle.Adapter_State.UNSPECIFIED) throw notFound(ref);
      if (record.state === lifecycle.Adapter_State.REVOKED) {
        throw new Failure('failed_precondition', `${record.name} is revoked and must not be served`, {
          reason: 'ADAPTER_REVOKED',
        });
      }
      return record;
    },
    async acquire(record, onState = () => undefined) {
      const failed = failures.get(record.name);
      if (failed?.digest === record.digest && failed.until > now()) throw failed.failure;
      failures.delete(record.name);
      try {
        const lease = await resident.acquire(record.digest, () =>
          withSpan(
            'inference.load_adapter',
            { attributes: { 'medmesh.adapter.digest': record.digest }, links: [record.traceparent] },
            () => load(record, onState),
          ),
        );
        checkRecord(record, lease);
        onState(State.READY);
        return lease;
      } catch (error) {
        const failure = toFailure(error);
        // What is wrong with the adapter itself stays wrong; what was away may be back.
        if (
          failure.code === 'failed_precondition' ||
          failure.code === 'data_loss' ||
          failure.code === 'invalid_argument'
        ) {
          failures.set(record.name, { failure, digest: record.digest, until: now() + failureTtlMs });
        }
        throw failure;
      }
    },
  };
}
