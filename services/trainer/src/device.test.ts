import type { EngineDevice } from '@medmesh/engine';
import { describe, expect, it } from 'vitest';
import { configSchema } from './config.ts';
import { chooseDevice, describeDevice, deviceNamed } from './device.ts';

const cpu: EngineDevice = { kind: 'cpu', index: 0, name: 'a CPU', isa: 'avx512', threads: 2, memoryBytes: 1 };
const gpu = (index: number): EngineDevice => ({
  kind: 'cuda',
  index,
  name: 'a GPU',
  isa: 'sm_90',
  threads: 132,
  memoryBytes: 1,
});

describe('the device a trainer uses', () => {
  it('is the first GPU by default, and the CPU where there is none', () => {
    expect(chooseDevice('', [cpu, gpu(0), gpu(1)])).toEqual(gpu(0));
    expect(chooseDevice('auto', [cpu])).toEqual(cpu);
  });

  it('is the one named', () => {
    expect(chooseDevice('cpu', [cpu, gpu(0)])).toEqual(cpu);
    expect(chooseDevice('cuda', [cpu, gpu(0)])).toEqual(gpu(0));
    expect(chooseDevice('cuda:1', [cpu, gpu(0), gpu(1)])).toEqual(gpu(1));
  });

  it('must be there', () => {
    expect(() => chooseDevice('cuda:1', [cpu, gpu(0)])).toThrow(
      'which this machine does not have; it has cpu:0, cuda:0',
    );
  });

  it('is found by the name that a trainer gives it', () => {
    expect(deviceNamed('cuda:1', [cpu, gpu(0), gpu(1)])).toEqual(gpu(1));
    expect(() => deviceNamed('cuda:2', [cpu, gpu(0)])).toThrow('does not list');
  });

  it('is named in one line', () => {
    expect(describeDevice(cpu)).toBe('cpu (avx512, 2 threads)');
    expect(describeDevice(gpu(1))).toBe('cuda:1 (a GPU, sm_90)');
  });

  it('and its memory are checked with the rest of the configuration', () => {
    const shape = configSchema.pick({ ENGINE_DEVICE: true, ENGINE_MEMORY_BUDGET: true });
    expect(shape.parse({})).toEqual({ ENGINE_DEVICE: 'auto', ENGINE_MEMORY_BUDGET: 'auto' });
    expect(shape.parse({ ENGINE_DEVICE: 'cuda:3', ENGINE_MEMORY_BUDGET: '24GiB' }).ENGINE_MEMORY_BUDGET).toBe(
      24 * 2 ** 30,
    );
    for (const ENGINE_DEVICE of ['gpu', 'cuda:', 'cpu:1', 'cuda:-1'])
      expect(shape.safeParse({ ENGINE_DEVICE }).success).toBe(false);
    for (const ENGINE_MEMORY_BUDGET of ['0GiB', '24', 'much', '-1GiB'])
      expect(shape.safeParse({ ENGINE_MEMORY_BUDGET }).success).toBe(false);
  });
});
