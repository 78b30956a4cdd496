import type { GenerationLoad } from '@medmesh/engine';
import type { inference } from '@medmesh/proto';
import type { Metrics } from '@medmesh/telemetry';
import type { Admission } from './admission.ts';
import type { Base, Bases } from './bases.ts';

export type ServingMetrics = {
  firstToken(model: string, seconds: number): void;
  tokens(model: string, count: number, secondsSinceLast: number | undefined): void;
  finished(model: string, reason: string, seconds: number, finished: inference.Finished): void;
  /** Tokens of texts that became vectors. */
  embedded(model: string, tokens: number): void;
  /** Totals of a base's engine, which only rise. */
  engine(base: Base, load: GenerationLoad): void;
  /** The key-value cache, over all bases. */
  kvBlocks(): { used: number; total: number };
};

/** Steps of a token last one to hundreds of milliseconds: the conventions' buckets begin where a GPU's steps end. */
const tokenBuckets = [
  0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 1,
];
const waitBuckets = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60];
const requestBuckets = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60, 120, 300, 600];
const countBuckets = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000];

const reasons: Record<string, string> = { LENGTH: 'length', REASONING_BUDGET: 'length', CANCELLED: 'abort' };

/**
 * Metrics by vLLM's names, which dashboards and the Kubernetes inference gateway read, and by ours. `model_name` is a resource name, never a caller's
 * text.
 */
export function createServingMetrics(
  metrics: Metrics,
  admission: Admission,
  bases: Pick<Bases, 'all'>,
  adapters: () => { running: readonly string[]; loaded: number },
): ServingMetrics {
  const labelNames = ['model_name'];
  const histogram = (name: string, help: string, buckets: readonly number[]) =>
    metrics.histogram({ name: `vllm:${name}`, help, labelNames, buckets });
  const counter = (name: string, help: string, labels: readonly string[] = []) =>
    metrics.counter({ name: `vllm:${name}_total`, help, labelNames: labels });
  const lastLoads = new WeakMap<Base, GenerationLoad>();
  const kvBlocks = () => {
    const loads = bases.all().flatMap(({ model }) => model.generationLoad() ?? []);
    const sum = (read: (load: GenerationLoad) => number) => loads.reduce((total, load) => total + read(load), 0);
    return { used: sum((load) => load.usedBlocks), total: sum((load) => load.totalBlocks) };
  };

  for (const prefix of ['vllm:', 'medmesh_']) {
    metrics.gauge({
      name: `${prefix}num_requests_running`,
      help: 'requests being answered',
      collect: (set) => set(admission.running),
    });
    metrics.gauge({
      name: `${prefix}num_requests_waiting`,
      help: 'requests in the queue',
      collect: (set) => set(admission.waiting),
    });
  }
  metrics.gauge({
    name: 'vllm:kv_cache_usage_perc',
    help: 'share of cache blocks in use, 0 to 1',
    collect: (set) => {
      const { used, total } = kvBlocks();
      set(total === 0 ? 0 : used / total);
    },
  });
  metrics.gauge({
    name: 'medmesh_queued_prompt_tokens',
    help: 'prompt tokens in the queue',
    collect: (set) => set(admission.waitingTokens),
  });
  metrics.gauge({
    name: 'vllm:lora_requests_info',
    help: 'time of the last look at the adapters, as the labels name them',
    labelNames: ['max_lora', 'running_lora_adapters', 'waiting_lora_adapters'],
    collect(set) {
      const { running, loaded } = adapters();
      set(Date.now() / 1000, { max_lora: loaded, running_lora_adapters: running.join(','), waiting_lora_adapters: '' });
    },
  });
  metrics.gauge({
    name: 'medmesh_base_device_info',
    help: '1 for every base in memory, as the labels name its device',
    labelNames: ['model_name', 'device'],
    collect(set) {
      for (const { record, device } of bases.all()) set(1, { model_name: record.name, device });
    },
  });
  const generation = counter('generation_tokens', 'tokens generated', labelNames);
  const own = metrics.counter({ name: 'medmesh_generation_tokens_total', help: 'tokens generated' });
  const prompt = counter('prompt_tokens', 'prompt tokens of answered requests', labelNames);
  const success = counter('request_success', 'answers that ended, by how', ['model_name', 'finished_reason']);
  const preemptions = counter('num_preemptions', 'sequences that gave their blocks back and are read again');
  const queries = counter('prefix_cache_queries', 'tokens looked up in the prefix cache');
  const hits = counter('prefix_cache_hits', 'tokens found in the prefix cache');
  const first = histogram('time_to_first_token_seconds', 'from the request to its first token', waitBuckets);
  const between = histogram('inter_token_latency_seconds', 'between tokens of one answer', tokenBuckets);
  const whole = histogram('e2e_request_latency_seconds', 'from the request to its end', requestBuckets);
  const queued = histogram('request_queue_time_seconds', 'in the queue', waitBuckets);
  const promptSize = histogram('request_prompt_tokens', 'prompt tokens of a request', countBuckets);
  const answerSize = histogram('request_generation_tokens', 'tokens of an answer', countBuckets);
  const seconds = (d: { seconds: number; nanos: number } | undefined) => (d?.seconds ?? 0) + (d?.nanos ?? 0) / 1e9;

  return {
    kvBlocks,
    firstToken: (model, s) => first.observe(s, { model_name: model }),
    tokens(model, count, secondsSinceLast) {
      generation.add(count, { model_name: model });
      own.add(count);
      if (secondsSinceLast !== undefined && count > 0) between.observe(secondsSinceLast / count, { model_name: model });
    },
    finished(model, reason, s, { usage, timing }) {
      const labels = { model_name: model };
      success.add(1, { ...labels, finished_reason: reasons[reason] ?? 'stop' });
      prompt.add(usage?.promptTokenCount ?? 0, labels);
      whole.observe(s, labels);
      queued.observe(seconds(timing?.queue), labels);
      promptSize.observe(usage?.promptTokenCount ?? 0, labels);
      answerSize.observe((usage?.reasoningTokenCount ?? 0) + (usage?.answerTokenCount ?? 0), labels);
    },
    embedded: (model, count) => prompt.add(count, { model_name: model }),
    engine(base, load) {
      const last = lastLoads.get(base);
      const rise = (read: (l: GenerationLoad) => number) => read(load) - (last === undefined ? 0 : read(last));
      preemptions.add(rise((l) => l.preempted));
      queries.add(rise((l) => l.promptTokens));
      hits.add(rise((l) => l.cachedTokens));
      lastLoads.set(base, load);
    },
  };
}
