import { createHash } from 'node:crypto';
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { artifactFiles } from '@medmesh/catalog';
import { inspectModel } from '@medmesh/engine';
import { Failure } from '@medmesh/errors';
import { collectFolder } from '@medmesh/objects';
import { lifecycle, model } from '@medmesh/proto';
import { keyOf } from '@medmesh/records';
import { seededRandom, sharedInputs, sharedInputsMissing, tempDir, waitFor, writeSafetensors } from '@medmesh/testkit';
import { writeTinyTokenizer } from '@medmesh/text/testing';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { writeModelFolder } from '../test/model-fixture.ts';
import { dequantize, floatsOf, readTensors } from '../test/read-tensors.ts';
import { type RunningQuantizer, startQuantizerProcess } from '../test/running-quantizer.ts';

let quantizer: RunningQuantizer;
/** The same model as a folder, in 16 bits and in 4. */
let baseDir: string;
let base: model.Model;
let quantized: model.Model;
const project = 'projects/p';

beforeAll(async () => {
  quantizer = await startQuantizerProcess();
  baseDir = await writeModelFolder(join(quantizer.roots, 'base'));
  base = await quantizer.import({ modelId: 'base', uri: `file://${baseDir}` });
  quantized = await quantize({ sourceModel: base.name, modelId: 'base-nf4' });
});
afterAll(() => quantizer.stop());

const quantize = async (request: Parameters<typeof model.QuantizeModelRequest.fromPartial>[0]) =>
  quantizer.finish(await quantizer.models().quantizeModel(request), model.Model);
const merge = async (request: Parameters<typeof model.MergeAdapterRequest.fromPartial>[0]) =>
  quantizer.finish(await quantizer.models().mergeAdapter(request), model.Model);

async function exportTo(name: string, dir: string): Promise<string> {
  const operation = await quantizer.models().exportModel({ name, destinationUri: `file://${dir}/` });
  expect(await quantizer.finish(operation, model.ExportModelResponse)).toMatchObject({
    destinationUri: `file://${dir}`,
  });
  return dir;
}

const exported = (name: string) => exportTo(name, join(quantizer.roots, 'exports', name.split('/').at(-1)!));

async function failureOf(promise: Promise<unknown>): Promise<Failure> {
  const error = await promise.then(
    () => undefined,
    (e: unknown) => e,
  );
  expect(error).toBeInstanceOf(Failure);
  return error as Failure;
}

const readJson = (path: string) => JSON.parse(readFileSync(path, 'utf8')) as Record<string, unknown>;
const linears = [
  'self_attn.q_proj',
  'self_attn.k_proj',
  'self_attn.v_proj',
  'self_attn.o_proj',
  'mlp.gate_proj',
  'mlp.up_proj',
  'mlp.down_proj',
];

type Lora = { rank: number; alpha: number };

/** A PEFT folder with random matrices for every linear layer of the base, stored, and its record. */
async function storeAdapter(
  id: string,
  dir: string,
  onto: model.Model,
  state: lifecycle.Adapter_State = lifecycle.Adapter_State.ACTIVE,
): Promise<string> {
  const name = `${project}/adapters/${id}`;
  const { digest, manifest } = await collectFolder(quantizer.store, dir, 'adapter', {});
  const record = lifecycle.Adapter.fromPartial({
    name,
    state,
    digest,
    files: artifactFiles(manifest),
    baseModel: onto.name,
    baseDigest: onto.digest,
  });
  await quantizer.catalog.adapters.create(keyOf(name), record);
  return name;
}

function writeAdapter({ rank, alpha }: Lora, seed: number): string {
  const dir = tempDir('adapter');
  const random = seededRandom(seed);
  const shapes = readTensors(join(baseDir, 'model.safetensors')).tensors;
  const matrices = ['0', '1'].flatMap((layer) =>
    linears.flatMap((linear) => {
      const module = `model.layers.${layer}.${linear}`;
      const [out, input] = shapes.get(`${module}.weight`)!.shape as [number, number];
      const matrix = (side: 'A' | 'B', shape: [number, number]) => ({
        name: `base_model.model.${module}.lora_${side}.weight`,
        dtype: 'F32' as const,
        shape,
        values: Float32Array.from({ length: shape[0] * shape[1] }, () => 0.05 * random.normal()),
      });
      return [matrix('A', [rank, input]), matrix('B', [out, rank])];
    }),
  );
  writeSafetensors(join(dir, 'adapter_model.safetensors'), matrices);
  const names = linears.map((linear) => linear.split('.')[1]);
  const config = {
    peft_type: 'LORA',
    task_type: 'CAUSAL_LM',
    r: rank,
    lora_alpha: alpha,
    lora_dropout: 0,
    bias: 'none',
    target_modules: names,
  };
  writeFileSync(
    join(dir, 'adapter_config.json'),
    JSON.stringify({ ...config, use_rslora: false, use_dora: false, base_model_name_or_path: '' }),
  );
  return dir;
}

/** W + alpha / rank · B·A in double precision. */
function adapted(
  weights: Float32Array,
  shape: number[],
  adapterDir: string,
  module: string,
  { rank, alpha }: Lora,
): Float64Array {
  const { tensors } = readTensors(join(adapterDir, 'adapter_model.safetensors'));
  const a = floatsOf(tensors.get(`base_model.model.${module}.lora_A.weight`)!);
  const b = floatsOf(tensors.get(`base_model.model.${module}.lora_B.weight`)!);
  const [rows, columns] = shape as [number, number];
  const sum = Float64Array.from(weights);
  for (let i = 0; i < rows; i += 1) {
    for (let k = 0; k < rank; k += 1) {
      const scaled = (alpha / rank) * b[i * rank + k]!;
      for (let j = 0; j < columns; j += 1) sum[i * columns + j]! += scaled * a[k * columns + j]!;
    }
  }
  return sum;
}

/** Half a unit in the last place of bfloat16. */
const bf16Error = (value: number) => 2 ** (Math.floor(Math.log2(Math.max(Math.abs(value), 2 ** -100))) - 8) * 1.01;

function expectRounded(stored: Float32Array, exact: Float64Array): void {
  expect(stored).toHaveLength(exact.length);
  const wrong = exact.findIndex((value, i) => Math.abs(value - stored[i]!) > bf16Error(value));
  expect(wrong).toBe(-1);
}

/** The largest |w − q| as a share of the largest |w| in its block of 64. */
function worstError(weights: Float32Array, values: Float32Array): number {
  let worst = 0;
  for (let block = 0; block < weights.length; block += 64) {
    const absmax = Math.max(...weights.subarray(block, block + 64).map(Math.abs));
    for (let i = block; i < block + 64; i += 1) worst = Math.max(worst, Math.abs(values[i]! - weights[i]!) / absmax);
  }
  return worst;
}

describe('quantize', () => {
  test('the record says what the model is and where it came from', async () => {
    expect(quantized).toMatchObject({
      name: `${project}/models/base-nf4`,
      state: model.Model_State.READY,
      quantization: model.Quantization.NF4_DOUBLE_QUANT,
      parameterCount: base.parameterCount,
      tokenizerDigest: base.tokenizerDigest,
      origin: { sourceModel: base.name, sourceDigest: base.digest },
    });
    expect(quantized.weightBytes).toBeLessThan(base.weightBytes);
    expect(quantizer.staged()).toEqual([]);
  });

  test('config.json names bitsandbytes’ settings as transformers writes them', async () => {
    const dir = await exported(quantized.name);
    const { quantization_config: settings, ...rest } = readJson(join(dir, 'config.json'));
    expect(settings).toEqual({
      _load_in_4bit: true,
      _load_in_8bit: false,
      bnb_4bit_compute_dtype: 'bfloat16',
      bnb_4bit_quant_storage: 'uint8',
      bnb_4bit_quant_type: 'nf4',
      bnb_4bit_use_double_quant: true,
      llm_int8_enable_fp32_cpu_offload: false,
      llm_int8_has_fp16_weight: false,
      llm_int8_skip_modules: null,
      llm_int8_threshold: 6,
      load_in_4bit: true,
      load_in_8bit: false,
      quant_method: 'bitsandbytes',
    });
    expect(rest).toMatchObject(readJson(join(baseDir, 'config.json')));
  });

  test.each([
    ['NF4 with double quantization', model.Quantization.NF4_DOUBLE_QUANT],
    ['NF4', model.Quantization.NF4],
  ])(
    '%s: every linear layer dequantizes to its nearest code, everything else keeps its bytes',
    async (label, quantization) => {
      const modelId = label === 'NF4' ? 'single' : 'double';
      const made = await quantize({ sourceModel: base.name, modelId, quantization });
      expect(made.quantization).toBe(quantization);
      const { tensors } = readTensors(join(await exported(made.name), 'model.safetensors'));
      const source = readTensors(join(baseDir, 'model.safetensors')).tensors;
      const isLinear = (name: string) => linears.some((linear) => name.endsWith(`${linear}.weight`));
      const others = [...source].filter(([name]) => !isLinear(name));
      expect(others.map(([name]) => tensors.get(name))).toEqual(others.map(([, tensor]) => tensor));
      // Half of the widest gap between two codes, and a little for the scale's own 8 bits.
      const allowed = 0.3038 / 2 + (quantization === model.Quantization.NF4 ? 0.001 : 0.03);
      for (const [name, tensor] of [...source].filter(([key]) => isLinear(key))) {
        const weights = floatsOf(tensor);
        const { values, shape } = dequantize(tensors, name);
        expect(shape).toEqual(tensor.shape);
        expect(worstError(weights, values), name).toBeLessThan(allowed);
      }
    },
  );

  test('what is quantized already, not ready or asked for in no quantization is refused at once', async () => {
    const models = quantizer.models();
    expect(await failureOf(models.quantizeModel({ sourceModel: quantized.name, modelId: 'x' }))).toMatchObject({
      reason: 'MODEL_QUANTIZED',
    });
    expect(
      await failureOf(models.quantizeModel({ sourceModel: `${project}/models/none`, modelId: 'x' })),
    ).toMatchObject({ code: 'not_found' });
    const none = { sourceModel: base.name, modelId: 'x', quantization: model.Quantization.NONE };
    expect(await failureOf(models.quantizeModel(none))).toMatchObject({
      code: 'invalid_argument',
      reason: 'FIELD_INVALID',
    });
    expect(await failureOf(models.quantizeModel({ sourceModel: base.name, modelId: 'base-nf4' }))).toMatchObject({
      code: 'already_exists',
    });
  });
});

describe('merge', () => {
  const lora = { rank: 4, alpha: 8 };
  let adapterDir: string;
  let adapter: string;
  beforeAll(async () => {
    adapterDir = writeAdapter(lora, 7);
    adapter = await storeAdapter('trained', adapterDir, quantized);
  });

  test.each([
    ['the dequantized base by default', '', 'dequantized'],
    ['the 16-bit model the base was quantized from, if asked', 'base', 'base16'],
  ])('goes into %s, is exact to bf16’s rounding, and says so', async (_, onto, mergedInto) => {
    const baseModel = onto === '' ? '' : base.name;
    const merged = await merge({ adapter, baseModel, modelId: `merged-${mergedInto}` });
    const record = await quantizer.catalog.adapters.get(keyOf(adapter));
    const into = onto === '' ? quantized : base;
    expect(merged).toMatchObject({
      state: model.Model_State.READY,
      quantization: model.Quantization.NONE,
      parameterCount: base.parameterCount,
      origin: {
        sourceModel: into.name,
        sourceDigest: into.digest,
        adapter,
        adapterDigest: record!.value.digest,
        mergedInto,
      },
    });
    const dir = await exported(merged.name);
    expect(readJson(join(dir, 'config.json'))).not.toHaveProperty('quantization_config');
    const { tensors, metadata } = readTensors(join(dir, 'model.safetensors'));
    expect(metadata['merged_into']).toBe(onto === '' ? 'nf4_dequantized' : 'stored');
    const source = readTensors(join(baseDir, 'model.safetensors')).tensors;
    const codes = readTensors(join(await exported(quantized.name), 'model.safetensors')).tensors;
    for (const layer of ['0', '1']) {
      for (const linear of linears) {
        const module = `model.layers.${layer}.${linear}`;
        const weight = source.get(`${module}.weight`)!;
        // The numbers the adapter was trained on are those of the codes, rounded to bf16 once.
        const weights =
          onto === '' ? Float32Array.from(dequantize(codes, `${module}.weight`).values, toBf16) : floatsOf(weight);
        expectRounded(
          floatsOf(tensors.get(`${module}.weight`)!),
          adapted(weights, weight.shape, adapterDir, module, lora),
        );
      }
    }
    expect((await inspectModel(dir)).quantization).toBe('none');
    expect(quantizer.staged()).toEqual([]);
  });

  test('an adapter that is pending, revoked or of another base is refused', async () => {
    const models = quantizer.models();
    const pending = await storeAdapter('pending', adapterDir, quantized, lifecycle.Adapter_State.UNSPECIFIED);
    const revoked = await storeAdapter('revoked', adapterDir, quantized, lifecycle.Adapter_State.REVOKED);
    const other = await quantizer.import({
      modelId: 'other',
      uri: `file://${await writeModelFolder(join(quantizer.roots, 'other'), { seed: 9 })}`,
    });
    const modelId = 'never';
    expect(await failureOf(models.mergeAdapter({ adapter: pending, modelId }))).toMatchObject({ code: 'not_found' });
    expect(await failureOf(models.mergeAdapter({ adapter: revoked, modelId }))).toMatchObject({
      reason: 'ADAPTER_REVOKED',
    });
    expect(await failureOf(models.mergeAdapter({ adapter, baseModel: other.name, modelId }))).toMatchObject({
      reason: 'ADAPTER_BASE_MISMATCH',
    });
  });

  test('an adapter whose matrices do not fit the base fails and leaves nothing', async () => {
    const wide = await quantizer.import({
      modelId: 'wide',
      uri: `file://${await writeModelFolder(join(quantizer.roots, 'wide'), { hidden: 128 })}`,
    });
    const misfit = await storeAdapter('misfit', adapterDir, wide);
    expect(await failureOf(merge({ adapter: misfit, modelId: 'never' }))).toMatchObject({ code: 'data_loss' });
    expect(await failureOf(quantizer.models().getModel({ name: `${project}/models/never` }))).toMatchObject({
      code: 'not_found',
    });
    expect(quantizer.staged()).toEqual([]);
  });

  test('an adapter of weights that are pickled is refused', async () => {
    const dir = tempDir('adapter');
    cpSync(join(adapterDir, 'adapter_config.json'), join(dir, 'adapter_config.json'));
    writeFileSync(join(dir, 'adapter_model.bin'), 'pickle');
    const pickled = await storeAdapter('pickled', dir, quantized);
    expect((await failureOf(merge({ adapter: pickled, modelId: 'never' }))).message).toMatch(/pickle|safetensors/);
  });
});

describe('export', () => {
  test('writes the very files of the model into an allowed folder', async () => {
    const dir = await exportTo(base.name, join(quantizer.roots, 'deep', 'folder'));
    expect(readdirSync(dir).toSorted()).toEqual(readdirSync(baseDir).toSorted());
    for (const name of readdirSync(baseDir))
      expect(readFileSync(join(dir, name)).equals(readFileSync(join(baseDir, name)))).toBe(true);
  });

  test('makes a GGUF file of a model, with its adapter, and says how far it is from its source', async () => {
    const dir = join(quantizer.roots, 'gguf');
    const adapter = await storeAdapter('for-gguf', writeAdapter({ rank: 4, alpha: 8 }, 3), quantized);
    const sizes: number[] = [];
    for (const [request, fileName] of [
      [{ name: base.name, format: model.ExportFormat.GGUF_F16 }, 'base-f16.gguf'],
      [{ name: base.name, format: model.ExportFormat.GGUF_Q4_K_M }, 'base-q4_k_m.gguf'],
      [{ name: quantized.name, format: model.ExportFormat.GGUF_Q8_0, adapter }, 'base-nf4-for-gguf-q8_0.gguf'],
    ] as const) {
      const operation = await quantizer.models().exportModel({ ...request, destinationUri: `file://${dir}` });
      const made = await quantizer.finish(operation, model.ExportModelResponse);
      expect(made).toMatchObject({ destinationUri: `file://${dir}`, files: [{ path: fileName }] });
      expect(made.parity?.probeTokens).toBe(48);
      expect(made.parity?.logprobMean).toBeGreaterThan(0);
      expect(made.parity?.logprobMean).toBeLessThan(0.1);
      const bytes = readFileSync(join(dir, fileName));
      expect(bytes.subarray(0, 4).toString()).toBe('GGUF');
      expect(made.files[0]).toMatchObject({
        sizeBytes: bytes.length,
        digest: `sha256:${createHash('sha256').update(bytes).digest('hex')}`,
      });
      sizes.push(bytes.length);
    }
    expect(sizes[1]).toBeLessThan(sizes[0]!);
    expect(quantizer.staged()).toEqual([]);
  });

  test('an adapter goes into GGUF files of its own base alone', async () => {
    const adapter = await storeAdapter('for-gguf-too', writeAdapter({ rank: 4, alpha: 8 }, 3), quantized);
    const request = { name: base.name, destinationUri: `file://${quantizer.roots}/never`, adapter };
    expect(await failureOf(quantizer.models().exportModel(request))).toMatchObject({ code: 'invalid_argument' });
    const other = await quantizer.import({
      modelId: 'gguf-other',
      uri: `file://${await writeModelFolder(join(quantizer.roots, 'gguf-other'), { seed: 11 })}`,
    });
    const format = model.ExportFormat.GGUF_F16;
    expect(await failureOf(quantizer.models().exportModel({ ...request, name: other.name, format }))).toMatchObject({
      reason: 'ADAPTER_BASE_MISMATCH',
    });
    expect(existsSync(join(quantizer.roots, 'never'))).toBe(false);
  });

  test('a folder outside the roots is refused and nothing is written there', async () => {
    const outside = tempDir('outside');
    for (const destination of [`file://${outside}/model`, `file://${quantizer.roots}/../escaped`]) {
      const operation = await quantizer.models().exportModel({ name: base.name, destinationUri: destination });
      expect(await failureOf(quantizer.finish(operation, model.ExportModelResponse))).toMatchObject({
        code: 'permission_denied',
        reason: 'URI_NOT_ALLOWED',
      });
    }
    expect(readdirSync(outside)).toEqual([]);
    expect(existsSync(join(quantizer.roots, '..', 'escaped'))).toBe(false);
  });

  test.each(['', '/tmp/x', 'http://127.0.0.1/x', 'file://host/x', 'hf://acme/tiny'])(
    'the destination %j is refused at once',
    async (destinationUri) => {
      expect(await failureOf(quantizer.models().exportModel({ name: base.name, destinationUri }))).toMatchObject({
        code: 'invalid_argument',
      });
    },
  );
});

describe('large models', () => {
  /** 256 MiB of weights in bf16: random within a mebibyte, which repeats. */
  function writeLargeFolder(): Promise<string> {
    const [hidden, intermediate, layers, vocab] = [1024, 4096, 8, 320];
    const dir = join(quantizer.roots, 'large');
    mkdirSync(dir);
    const random = seededRandom(5);
    const pattern = Float32Array.from({ length: 1 << 19 }, () => 0.05 * random.normal());
    const tensor = (name: string, ...shape: number[]) => {
      const values = new Float32Array(shape.reduce((product, size) => product * size, 1));
      for (let at = 0; at < values.length; at += pattern.length)
        values.set(pattern.subarray(0, values.length - at), at);
      return { name, dtype: 'BF16' as const, shape, values };
    };
    const blocks = Array.from({ length: layers }, (_, i) => `model.layers.${i}`).flatMap((layer) => [
      ...['input_layernorm', 'post_attention_layernorm'].map((norm) => tensor(`${layer}.${norm}.weight`, hidden)),
      ...['q', 'k', 'v', 'o'].map((x) => tensor(`${layer}.self_attn.${x}_proj.weight`, hidden, hidden)),
      ...['gate', 'up'].map((x) => tensor(`${layer}.mlp.${x}_proj.weight`, intermediate, hidden)),
      tensor(`${layer}.mlp.down_proj.weight`, hidden, intermediate),
    ]);
    writeSafetensors(join(dir, 'model.safetensors'), [
      tensor('model.embed_tokens.weight', vocab, hidden),
      ...blocks,
      tensor('model.norm.weight', hidden),
    ]);
    const config = {
      architectures: ['LlamaForCausalLM'],
      model_type: 'llama',
      hidden_size: hidden,
      intermediate_size: intermediate,
    };
    const heads = { num_hidden_layers: layers, num_attention_heads: 16, num_key_value_heads: 16, vocab_size: vocab };
    const rest = {
      max_position_embeddings: 512,
      hidden_act: 'silu',
      rms_norm_eps: 1e-6,
      rope_theta: 10_000,
      tie_word_embeddings: true,
      torch_dtype: 'bfloat16',
    };
    writeFileSync(join(dir, 'config.json'), JSON.stringify({ ...config, ...heads, ...rest }));
    return writeTinyTokenizer(dir);
  }

  /** Memory that belongs to the process alone: mapped files can be let go at any time. */
  const privateBytes = () =>
    1024 * Number(/RssAnon:\s+(\d+) kB/.exec(readFileSync(`/proc/${quantizer.process().pid}/status`, 'utf8'))![1]);

  async function peakOf(work: () => Promise<unknown>): Promise<number> {
    let peak = 0;
    const timer = setInterval(() => {
      peak = Math.max(peak, privateBytes());
    }, 20);
    await work().finally(() => clearInterval(timer));
    return peak;
  }

  test('are imported, quantized and exported in a fraction of their size, and a cancel ends the quantization', async () => {
    const dir = await writeLargeFolder();
    const before = privateBytes();
    let large: model.Model | undefined;
    const importPeak = await peakOf(async () => {
      large = await quantizer.import({ modelId: 'large', uri: `file://${dir}` });
    });
    expect(large!.weightBytes).toBeGreaterThan(256 * 2 ** 20);
    const quantizePeak = await peakOf(async () => {
      const small = await quantize({ sourceModel: large!.name, modelId: 'large-nf4' });
      expect(small.weightBytes / large!.weightBytes).toBeLessThan(0.27);
    });
    const exportPeak = await peakOf(() => exported(large!.name));
    const [imported, derived, copied] = [importPeak, quantizePeak, exportPeak].map((peak) =>
      Math.round((peak - before) / 2 ** 20),
    );
    const shown = `import ${imported}, quantize ${derived}, export ${copied} MiB`;
    console.log(`private memory above rest, of a model of 257 MiB: ${shown}`);
    expect(Math.max(imported!, derived!, copied!), shown).toBeLessThan(128);

    const operation = await quantizer.models().quantizeModel({ sourceModel: large!.name, modelId: 'stopped' });
    await waitFor(async () => (await quantizer.metadata(operation)).phase === 'QUANTIZE', { intervalMs: 5 });
    await quantizer.operations.cancel(operation.name);
    expect(await failureOf(quantizer.finish(operation, model.Model))).toMatchObject({ code: 'cancelled' });
    expect(await failureOf(quantizer.models().getModel({ name: `${project}/models/stopped` }))).toMatchObject({
      code: 'not_found',
    });
    expect(quantizer.staged()).toEqual([]);
  });
});

const shared = sharedInputs();
describe.skipIf(shared === null)(
  `vectors of bitsandbytes and PEFT${shared === null ? ` (${sharedInputsMissing})` : ''}`,
  () => {
    const golden = join(shared ?? '', 'golden/qwen2_untied');
    let source: model.Model;
    let nf4: model.Model;
    beforeAll(async () => {
      const dir = join(quantizer.roots, 'golden');
      mkdirSync(dir);
      for (const name of ['config.json', 'model.safetensors']) cpSync(join(golden, name), join(dir, name));
      await writeTinyTokenizer(dir);
      source = await quantizer.import({ modelId: 'golden', uri: `file://${dir}` });
      nf4 = await quantize({ sourceModel: source.name, modelId: 'golden-nf4' });
    });

    test('the codes and scales are bitsandbytes’ own', async () => {
      const { tensors } = readTensors(join(await exported(nf4.name), 'model.safetensors'));
      const expected = readTensors(join(golden, 'nf4_layer0.safetensors')).tensors;
      for (const name of ['model.layers.0.mlp.down_proj.weight', 'model.layers.0.self_attn.q_proj.weight']) {
        const { values } = dequantize(tensors, name);
        const reference = floatsOf(expected.get(`${name}.dq.dequant`)!);
        const different = reference.filter((value, i) => Math.abs(value - values[i]!) > 1e-6 * Math.abs(value)).length;
        // A near-tie may fall to either side.
        expect(different / reference.length).toBeLessThan(0.001);
      }
    });

    test('a PEFT adapter trained on the 4-bit base merges into it', async () => {
      const adapter = await storeAdapter('golden', join(golden, 'adapter_after5'), nf4);
      const merged = await merge({ adapter, modelId: 'golden-merged' });
      expect(merged).toMatchObject({ parameterCount: source.parameterCount, origin: { mergedInto: 'dequantized' } });
    });
  },
);

/** Rounded to nearest, ties to even. */
function toBf16(value: number): number {
  const bits = new Uint32Array(new Float32Array([value]).buffer);
  bits[0] = (bits[0]! + 0x7fff + ((bits[0]! >>> 16) & 1)) & 0xffff0000;
  return new Float32Array(bits.buffer)[0]!;
}
