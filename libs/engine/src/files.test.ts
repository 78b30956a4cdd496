import { copyFileSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { goldenDir, sharedDir, temporaryDir } from '../test/fixtures/golden.ts';
import {
  inspectModel,
  inspectSafetensors,
  mergeAdapter,
  openSafetensors,
  quantizeModel,
  readSafetensors,
  writeSafetensors,
} from './files.ts';
import type { NewTensor, Progress } from './types.ts';

let temp: ReturnType<typeof temporaryDir>;
beforeEach(() => {
  temp = temporaryDir();
});
afterEach(() => temp.remove());
const at = (...parts: string[]) => join(temp.dir, ...parts);

/** A copy of a golden model folder, to be spoiled. */
function copyOf(name: string): string {
  const dir = at(name);
  mkdirSync(dir);
  for (const file of ['config.json', 'model.safetensors']) copyFileSync(join(goldenDir(name), file), join(dir, file));
  return dir;
}

describe('safetensors', () => {
  it('returns what was written, byte for byte', async () => {
    const tensors: NewTensor[] = [
      { name: 'ids', dtype: 'u32', shape: [2, 2], data: new Uint8Array(Uint32Array.of(1, 2, 3, 4).buffer) },
      { name: 'mask', dtype: 'u8', shape: [3], data: Uint8Array.of(0, 1, 1) },
      { name: 'none', dtype: 'f32', shape: [0], data: new Uint8Array() },
    ];
    await writeSafetensors(at('f'), tensors, { kind: 'shard' });
    const read = await readSafetensors(at('f'));
    expect(read.get('mask')).toEqual({ dtype: 'u8', shape: [3], data: Uint8Array.of(0, 1, 1) });
    expect(read.get('ids')?.data).toEqual(tensors[0]?.data);
    expect(read.get('none')?.data.byteLength).toBe(0);
    const info = await inspectSafetensors(at('f'));
    expect(info.metadata).toEqual({ kind: 'shard' });
    expect(info.tensors.map((tensor) => tensor.name).sort()).toEqual(['ids', 'mask', 'none']);
  });

  it('replaces a file only by a complete one', async () => {
    const good: NewTensor = { name: 'a', dtype: 'u8', shape: [1], data: Uint8Array.of(1) };
    await writeSafetensors(at('f'), [good]);
    await expect(writeSafetensors(at('f'), [good, good])).rejects.toMatchObject({ code: 'invalid' });
    expect((await readSafetensors(at('f'))).get('a')?.data).toEqual(Uint8Array.of(1));
    expect(readdirSync(temp.dir)).toEqual(['f']);
  });

  it('grows a file piece by piece that is there only when it is finished', async () => {
    const whole = Float32Array.from({ length: 6 }, (_, i) => i / 3);
    const bytes = new Uint8Array(whole.buffer);
    const file = await openSafetensors(at('f'), [
      { name: 'a', dtype: 'f32', shape: [2, 3] },
      { name: 'b', dtype: 'u8', shape: [1] },
    ]);
    await file.append('a', bytes.subarray(0, 7));
    await file.append('b', Uint8Array.of(9));
    await expect(file.append('b', Uint8Array.of(9))).rejects.toMatchObject({ code: 'invalid' });
    await expect(file.append('c', Uint8Array.of(9))).rejects.toMatchObject({ code: 'invalid' });
    await expect(file.finish()).rejects.toMatchObject({
      code: 'invalid',
      message: expect.stringContaining('7 of 24 bytes'),
    });
    expect(readdirSync(temp.dir)).not.toContain('f');
    await file.append('a', bytes.subarray(7));
    await file.finish();
    await file.close();
    expect((await readSafetensors(at('f'))).get('a')).toEqual({ dtype: 'f32', shape: [2, 3], data: bytes });
    const given = await openSafetensors(at('g'), [{ name: 'a', dtype: 'u8', shape: [1] }]);
    await given.close();
    expect(readdirSync(temp.dir)).toEqual(['f']);
    await expect(openSafetensors(at('no', 'g'), [])).rejects.toMatchObject({ code: 'io' });
  });

  it('refuses hostile files as corrupt and a missing one as io', async () => {
    const original = readFileSync(join(goldenDir('llama3'), 'model.safetensors'));
    const spoiled: [string, Buffer][] = [
      ['truncated', original.subarray(0, original.length - 1)],
      ['longer', Buffer.concat([original, Buffer.of(0)])],
      ['header past the end', Buffer.concat([Buffer.from([255, 255, 255, 0, 0, 0, 0, 0]), original.subarray(8)])],
      ['header of 2^63', Buffer.concat([Buffer.from([0, 0, 0, 0, 0, 0, 0, 128]), original.subarray(8)])],
      ['empty', Buffer.alloc(0)],
      ['a pickle', Buffer.from('\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00.', 'latin1')],
    ];
    for (const [why, bytes] of spoiled) {
      writeFileSync(at('bad'), bytes);
      await expect(inspectSafetensors(at('bad')), why).rejects.toMatchObject({ name: 'EngineError', code: 'corrupt' });
    }
    await expect(inspectSafetensors(at('absent'))).rejects.toMatchObject({ code: 'io' });
  });

  it('rejects malformed arguments as invalid', async () => {
    const bad = (value: unknown) => value as never;
    const data = Uint8Array.of(1);
    const cases: unknown[] = [
      null,
      [null],
      [{ name: 'a', dtype: 'f16', shape: [1], data }],
      [{ name: 'a', dtype: 'u8', shape: [2], data }],
      [{ name: 'a', dtype: 'u8', shape: [-1], data }],
      [{ name: 'a', dtype: 'u8', shape: [0.5], data }],
      [{ name: 'a', dtype: 'u8', shape: 1, data }],
      [{ name: 'a', dtype: 'u8', shape: [1], data: [1] }],
      [{ name: 'a', dtype: 'u8', shape: [4], data: Uint32Array.of(1) }],
      [{ name: 1, dtype: 'u8', shape: [1], data }],
    ];
    for (const tensors of cases)
      await expect(writeSafetensors(at('f'), bad(tensors))).rejects.toMatchObject({ code: 'invalid' });
    for (const path of [null, 1, '', 'a\0b', {}])
      await expect(inspectSafetensors(bad(path))).rejects.toMatchObject({ code: 'invalid' });
    expect(readdirSync(temp.dir)).toEqual([]);
  });
});

describe('inspectModel', () => {
  it('tells what a folder holds', async () => {
    expect(await inspectModel(goldenDir('llama3'))).toMatchObject({
      architecture: 'LlamaForCausalLM',
      modelType: 'llama',
      layers: 2,
      hiddenSize: 32,
      vocabSize: 96,
      contextLength: 128,
      tied: false,
      storedDtype: 'bf16',
      quantization: 'none',
    });
  });

  it('refuses a config that does not fit its tensors', async () => {
    const dir = copyOf('llama3');
    const config = JSON.parse(readFileSync(join(dir, 'config.json'), 'utf8'));
    writeFileSync(join(dir, 'config.json'), JSON.stringify({ ...config, num_hidden_layers: 3 }));
    await expect(inspectModel(dir)).rejects.toMatchObject({ code: 'corrupt' });
    writeFileSync(join(dir, 'config.json'), JSON.stringify({ ...config, intermediate_size: 49 }));
    await expect(inspectModel(dir)).rejects.toMatchObject({ code: 'corrupt' });
    writeFileSync(join(dir, 'config.json'), JSON.stringify({ ...config, model_type: 'mamba' }));
    await expect(inspectModel(dir)).rejects.toMatchObject({ code: 'unsupported' });
  });

  it('never opens a pickle', async () => {
    const dir = at('pickled');
    mkdirSync(dir);
    copyFileSync(join(goldenDir('llama3'), 'config.json'), join(dir, 'config.json'));
    writeFileSync(join(dir, 'pytorch_model.bin'), 'x');
    await expect(inspectModel(dir)).rejects.toMatchObject({
      code: 'unsupported',
      message: expect.stringContaining('pickle'),
    });
  });
});

describe('quantizeModel', () => {
  it('leaves the modules it is told to in 16 bits and lists them', async () => {
    await quantizeModel({ modelDir: goldenDir('llama3'), outDir: at('mixed'), skipModules: ['down_proj'] });
    const { tensors } = await inspectSafetensors(at('mixed', 'model.safetensors'));
    const dtypes = new Map(tensors.map((tensor) => [tensor.name, tensor.dtype]));
    expect(dtypes.get('model.layers.0.mlp.down_proj.weight')).toBe('bf16');
    expect(dtypes.get('model.layers.0.mlp.up_proj.weight')).toBe('u8');
    const config = JSON.parse(readFileSync(at('mixed', 'config.json'), 'utf8'));
    expect(config.quantization_config.llm_int8_skip_modules).toContain('model.layers.1.mlp.down_proj');
    expect(await inspectModel(at('mixed'))).toMatchObject({ quantization: 'nf4' });
  });

  it('writes an NF4 folder and reports progress to the end', async () => {
    const seen: Progress[] = [];
    const result = await quantizeModel({
      modelDir: goldenDir('llama3'),
      outDir: at('q'),
      onProgress: (progress) => seen.push(progress),
    });
    const info = await inspectModel(at('q'));
    expect(info).toMatchObject({ quantization: 'nf4', doubleQuant: true, storedDtype: 'bf16' });
    expect(result.tensors).toBeGreaterThan(14);
    expect(seen.at(-1)?.done).toBe(seen.at(-1)?.total);
  });

  it('leaves nothing behind when it is cancelled or fails', async () => {
    const controller = new AbortController();
    controller.abort();
    const signal = controller.signal;
    await expect(quantizeModel({ modelDir: goldenDir('llama3'), outDir: at('q'), signal })).rejects.toMatchObject({
      code: 'cancelled',
    });
    await expect(quantizeModel({ modelDir: at('absent'), outDir: at('q') })).rejects.toMatchObject({ code: 'io' });
    expect(readdirSync(temp.dir)).toEqual([]);
    mkdirSync(at('taken', 'inside'), { recursive: true });
    await expect(quantizeModel({ modelDir: goldenDir('llama3'), outDir: at('taken') })).rejects.toMatchObject({
      code: 'invalid',
    });
    await quantizeModel({ modelDir: goldenDir('llama3'), outDir: at('taken'), replace: true });
    expect(readdirSync(at('taken')).sort()).toEqual(['config.json', 'model.safetensors']);
    expect(readdirSync(temp.dir)).toEqual(['taken']);
  });
});

describe('mergeAdapter', () => {
  const golden = sharedDir('golden', 'qwen2_untied');

  it.skipIf(!golden)('says whether the base was dequantized', async () => {
    const modelDir = golden as string;
    const adapterDir = join(modelDir, 'adapter_after5');
    expect(await mergeAdapter({ modelDir, adapterDir, outDir: at('m') })).toMatchObject({ base: 'stored' });
    await quantizeModel({ modelDir, outDir: at('q') });
    const merged = await mergeAdapter({ modelDir: at('q'), adapterDir, outDir: at('mq') });
    expect(merged.base).toBe('nf4_dequantized');
    expect((await inspectSafetensors(at('mq', 'model.safetensors'))).metadata).toMatchObject({
      merged_into: 'nf4_dequantized',
    });
    expect(await inspectModel(at('mq'))).toMatchObject({ quantization: 'none' });
  });
});
