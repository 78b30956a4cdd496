import { setTimeout as sleep } from 'node:timers/promises';
import type { EngineDevice, StepResult, TrainingPlan } from '@medmesh/engine';
import { describe, expect, it } from 'vitest';
import { watchDeviceMemory } from './device-memory.ts';
import { bf16Peak } from './device-peak.ts';
import { createProgress } from './progress.ts';

const device = (kind: 'cpu' | 'cuda', name: string): EngineDevice => ({
  kind,
  index: 0,
  name,
  isa: kind === 'cpu' ? 'avx512' : 'sm_90',
  threads: 2,
  memoryBytes: 1,
});
const h200 = device('cuda', 'NVIDIA H200');

const step = (number: number, facts: Partial<StepResult>): StepResult => ({
  step: number,
  loss: 2,
  gradNorm: 1,
  learningRate: 1e-4,
  tokens: 1000,
  trainableTokens: 900,
  skipped: false,
  durationMs: 100,
  flops: 0,
  peakBytes: 5,
  plan: null,
  ...facts,
});

describe('the numbers of a run', () => {
  it('are speed and share of the peak over the last twenty steps, weighted by their time', () => {
    const progress = createProgress(30, 0, undefined, { device: h200, usedMemory: () => 7 });
    // Five slow steps that have left the window, then ten of 100 ms and ten of 300 ms: 4 s in which 20 · 98.94 TFLOP were needed.
    for (let i = 1; i <= 5; i++) progress.addStep(step(i, { durationMs: 10_000, flops: 1 }));
    for (let i = 6; i <= 15; i++) progress.addStep(step(i, { durationMs: 100, flops: 98.94e12 }));
    for (let i = 16; i <= 25; i++) progress.addStep(step(i, { durationMs: 300, flops: 98.94e12 }));
    const shown = progress.snapshot(1);
    expect(shown.tokensPerSecond).toBeCloseTo(5000, 9);
    expect(shown.modelFlopsUtilization).toBeCloseTo(0.5, 9);
    expect(shown.device).toBe('cuda:0 (NVIDIA H200, sm_90)');
  });

  it('tell what a GPU’s plan takes and what is in use there, and nothing of the kind for a CPU', () => {
    const plan = { deviceBytes: 1234 } as TrainingPlan;
    const gpu = createProgress(2, 0, undefined, { device: h200, usedMemory: () => 5678 });
    expect(gpu.snapshot(0)).toMatchObject({ plannedMemoryBytes: 0, deviceMemoryBytes: 5678, tokensPerSecond: 0 });
    expect(gpu.snapshot(0).modelFlopsUtilization).toBeUndefined();
    gpu.addStep(step(1, { plan, flops: 1e12 }));
    expect(gpu.snapshot(0)).toMatchObject({ plannedMemoryBytes: 1234, deviceMemoryBytes: 5678 });
    const cpu = createProgress(2, 0, undefined, { device: device('cpu', 'a CPU'), usedMemory: () => 5678 });
    cpu.addStep(step(1, { plan, flops: 1e12 }));
    expect(cpu.snapshot(0)).toMatchObject({ plannedMemoryBytes: 0, deviceMemoryBytes: 0 });
    expect(cpu.snapshot(0).modelFlopsUtilization).toBeUndefined();
  });
});

describe('the peak of a GPU', () => {
  it('is its datasheet’s, by the name that the driver gives', () => {
    const peak = (name: string) => bf16Peak(device('cuda', name));
    expect(peak('NVIDIA H200')).toBe(989.4e12);
    expect(peak('NVIDIA H100 80GB HBM3')).toBe(989.4e12);
    expect(peak('NVIDIA H100 PCIe')).toBe(756e12);
    expect(peak('NVIDIA A100-SXM4-80GB')).toBe(312e12);
    expect(peak('NVIDIA L40S')).toBe(362e12);
    expect(peak('NVIDIA L4')).toBe(121e12);
  });

  it('is not guessed for other parts, and a CPU has none here', () => {
    expect(bf16Peak(device('cuda', 'NVIDIA A1000'))).toBeUndefined();
    expect(bf16Peak(device('cpu', 'NVIDIA H200'))).toBeUndefined();
  });
});

describe('watching a GPU’s memory', () => {
  it('gives the newest reading at once, with one reading under way at a time', async () => {
    const answers = [Promise.withResolvers<number>(), Promise.withResolvers<number>()];
    let readings = 0;
    const used = watchDeviceMemory(h200, () => answers[readings++]?.promise ?? Promise.reject(new Error('no more')));
    expect([used(), used()]).toEqual([0, 0]);
    expect(readings).toBe(1);
    answers[0]?.resolve(10);
    await sleep(0);
    expect(used()).toBe(10);
    expect(readings).toBe(2);
    answers[1]?.reject(new Error('the driver does not tell'));
    await sleep(0);
    expect(used()).toBe(10);
  });

  it('reads nothing on a CPU', () => {
    expect(watchDeviceMemory(device('cpu', 'a CPU'), () => Promise.reject(new Error('read')))()).toBe(0);
  });
});
