import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { dataset, lifecycle, model } from '@medmesh/proto';
import { flushTelemetry, startTelemetry, withSpan } from '@medmesh/telemetry';
import { type CollectedSpan, type OtlpCollector, sharedInputs, sharedInputsMissing, startOtlp } from '@medmesh/testkit';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type MeshFixture, startMeshFixture, writeModelFolder } from './mesh-fixture.ts';

const shared = sharedInputs();
const State = lifecycle.FineTuningJob_State;

let otlp: OtlpCollector;
let fixture: MeshFixture;

beforeAll(async () => {
  if (shared === null) return;
  otlp = await startOtlp();
  startTelemetry({ OTEL_EXPORTER_OTLP_ENDPOINT: otlp.endpoint, OTEL_SERVICE_NAME: 'test' });
  fixture = await startMeshFixture({ otlpEndpoint: otlp.endpoint });
}, 120_000);

afterAll(async () => {
  await fixture?.stop();
  await otlp?.stop();
});

/** Names of a span's ancestors, itself first. */
function lineage(spans: readonly CollectedSpan[], span: CollectedSpan): string[] {
  const byId = new Map(spans.map((s) => [s.spanId, s]));
  const names: string[] = [];
  for (let at: CollectedSpan | undefined = span; at !== undefined; at = byId.get(at.parentSpanId))
    names.push(`${at.service}: ${at.name}`);
  return names;
}

test.skipIf(shared === null)(
  `the tutorial's life of a fine-tune, with the real vocabulary, tokenizer and rows${shared === null ? ` (${sharedInputsMissing})` : ''}`,
  { timeout: 900_000 },
  async () => {
    const { client, dir } = fixture;
    const folder = writeModelFolder(join(dir, 'tiny'), join(shared!, 'data/tokenizers/deepseek-r1-distill-qwen'), {
      vocab: 151_936,
      hidden: 32,
      layers: 2,
      contextLength: 2048,
      dtype: 'BF16',
      eosTokenId: 151_643,
    });
    const rows = join(shared!, 'data/medical/medical_o1_zh_916.jsonl');

    const base = await client.models.import({ modelId: 'tiny', uri: pathToFileURL(folder).href });
    const nf4 = await client.models.quantize({ sourceModel: base.name, modelId: 'tiny-nf4' });
    expect(nf4.quantization).toBe(model.Quantization.NF4_DOUBLE_QUANT);
    expect(nf4.origin).toMatchObject({ sourceModel: base.name, sourceDigest: base.digest });

    const upload = await client.datasets.upload(rows);
    await client.datasets.ensure('zh');
    const version = await client.datasets.buildVersion('zh', {
      sources: [{ uri: upload.digest, fileName: upload.fileName }],
      model: nf4.name,
      maxTokens: 1024,
      overlong: dataset.OverlongPolicy.DROP,
      validationFraction: 0.02,
    });
    // What the DeepSeek tokenizer makes of these rows under the tutorial's template, counted once with the pure-JavaScript tokenizer.
    expect(version.stats).toMatchObject({
      rowCount: 916,
      usedRowCount: 913,
      droppedRowCount: 3,
      tokenCount: 562_025,
      trainableTokenCount: 438_728,
    });

    // One trace from the job's creation to the first generated token.
    const { job, answer, traceId } = await withSpan('test', {}, async (span) => {
      const created = await client.jobs.create({
        source: { $case: 'baseModel', value: nf4.name },
        trainDatasets: [{ datasetVersion: version.name }],
        schedule: { steps: 12, learningRate: 5e-3, warmupSteps: 2 },
        checkpointing: { intervalSteps: 5 },
        publish: { adapterId: 'appendix' },
      });
      expect(created.state).toBe(State.PENDING);
      const done = await client.jobs.waitFor(created.name);
      const asked = await client.inference.answer(
        { question: '患者转移性右下腹痛24小时，伴发热、恶心，麦氏点压痛及反跳痛阳性。最可能的诊断是什么？' },
        { adapter: done.adapter, sampling: { maxTokens: 24 } },
      );
      return { job: done, answer: asked, traceId: span.spanContext().traceId };
    });
    expect(job.state).toBe(State.SUCCEEDED);
    expect(job.progress).toMatchObject({ step: 12, totalSteps: 12 });
    expect(job.progress?.validationLoss).toBeGreaterThan(0);
    expect(job.resolvedSpec?.adapterSpec?.kind).toMatchObject({ value: { rank: 16, alpha: 16 } });
    const points = await client.jobs.metrics(job.name);
    expect(points.map((p) => p.step)).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    expect(points.at(-1)!.loss).toBeLessThan(points[0]!.loss);
    expect(answer.started).toMatchObject({
      adapter: job.adapter,
      baseDigest: nf4.digest,
      startsInsideThink: true,
      quantization: 'nf4-double-quant',
    });
    expect(answer.finished.usage!.reasoningTokenCount + answer.finished.usage!.answerTokenCount).toBe(24);

    const loaded = await client.raw.inferenceAdmin.listLoadedAdapters({});
    expect(loaded.adapters).toHaveLength(1);
    expect(loaded.adapters[0]!.parityTokenCount).toBeGreaterThan(100);
    expect(loaded.adapters[0]!.parityMaxDifference).toBeLessThan(0.01); // summed in another order than the trainer did

    expect(job.traceId).toBe(traceId);
    await flushTelemetry();
    // Processes send their spans in their own time: the tree is complete when both ends of it hang under the test's own span.
    const reachesRoot = (all: readonly CollectedSpan[], name: string) =>
      all.some((span) => span.traceId === traceId && span.name === name && lineage(all, span).at(-1) === 'test: test');
    const spans = await otlp.waitForSpans(
      (all) => reachesRoot(all, 'inference.generate') && reachesRoot(all, 'trainer.publish'),
      20_000,
    );
    const tree = spans.filter((s) => s.traceId === traceId);
    const one = (service: string, name: string) => {
      const found = tree.filter((s) => s.service === service && s.name === name);
      expect(found, `${service}: ${name}`).not.toHaveLength(0);
      return found[0]!;
    };
    const publish = one('trainer', 'trainer.publish');
    expect(lineage(tree, publish)).toContain('trainer: trainer.attempt');
    for (const name of [
      'trainer.fetch_data',
      'trainer.fetch_base',
      'trainer.load_base',
      'trainer.train',
      'trainer.verify_export',
    ])
      one('trainer', name);
    // The attempt hangs under the call that created the job, as it reached lifecycle through the gateway.
    expect(
      lineage(tree, one('trainer', 'trainer.attempt')).some((name) =>
        name.startsWith('lifecycle: medmesh.lifecycle.v1.FineTuningService/CreateFineTuningJob'),
      ),
    ).toBe(true);
    const generate = one('inference', 'inference.generate');
    expect(generate.events.map((event) => event.name)).toContain('first_token');
    expect(
      lineage(tree, generate).some((name) =>
        name.startsWith('gateway: medmesh.inference.v1.InferenceService/Generate'),
      ),
    ).toBe(true);
    for (const service of ['gateway', 'lifecycle', 'trainer', 'inference'])
      expect(
        tree.some((s) => s.service === service),
        service,
      ).toBe(true);
  },
);

test.skipIf(shared === null)(
  'no patient text is in any span, log line or metric of the whole life',
  { timeout: 60_000 },
  async () => {
    const { mesh } = fixture;
    const first = JSON.parse(
      readFileSync(join(shared!, 'data/medical/medical_o1_zh_916.jsonl'), 'utf8').split('\n', 1)[0]!,
    ) as Record<string, string>;
    const canaries = [...Object.values(first).map((text) => text.slice(10, 26)), '转移性右下腹痛24小时'];
    const spans = JSON.stringify(otlp.spans(), (_, value: unknown) =>
      typeof value === 'bigint' ? String(value) : value,
    );
    const logs = mesh.record.processes.map(({ log }) => readFileSync(log, 'utf8')).join('\n');
    const metrics = await Promise.all(
      Object.values(mesh.record.metrics).map(async (address) => (await fetch(`http://${address}/metrics`)).text()),
    );
    for (const canary of canaries) {
      expect(canary.length).toBeGreaterThan(8);
      for (const text of [spans, logs, ...metrics]) expect(text.includes(canary)).toBe(false);
    }
    expect(logs.length).toBeGreaterThan(1000);
  },
);

test.skipIf(shared === null)(
  'a merged model and a PEFT folder come out, verified file by file',
  { timeout: 120_000 },
  async () => {
    const { client, dir } = fixture;
    const merged = await client.models.merge({ adapter: client.adapters.name('appendix'), modelId: 'merged' });
    expect(merged.origin).toMatchObject({ mergedInto: 'dequantized', adapter: client.adapters.name('appendix') });
    expect(merged.quantization).toBe(model.Quantization.NONE);
    const files = await client.models.download('merged', join(dir, 'merged'));
    expect(files.map((file) => file.split('/').at(-1))).toEqual(
      expect.arrayContaining(['config.json', 'model.safetensors', 'tokenizer.json']),
    );
    const adapterFiles = await client.adapters.download('appendix', join(dir, 'adapter'));
    expect(new Set(adapterFiles.map((file) => file.split('/').at(-1)))).toEqual(
      new Set(['adapter_config.json', 'adapter_model.safetensors', 'medmesh.json']),
    );
    const lineageOf = await client.adapters.lineage('appendix');
    expect(lineageOf.models).toEqual([client.models.name('tiny-nf4'), client.models.name('tiny')]);
    // The merged model answers as base and adapter do, but for the rounding of the merge.
    const ask = { question: '阑尾炎的首选治疗是什么？' };
    const sampling = { maxTokens: 8 };
    const [apart, together] = await Promise.all([
      client.inference.answer(ask, { adapter: client.adapters.name('appendix'), sampling }),
      client.inference.answer(ask, { base: merged.name, sampling }),
    ]);
    expect(together.started.promptTokenCount).toBe(apart.started.promptTokenCount);
  },
);
