// Runs `./medmesh engine …` as a process, as a script does, and reads what it wrote.
import { execFile } from 'node:child_process';
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { readSafetensors } from '@medmesh/engine';
import { repositoryRoot, sharedInputs } from '@medmesh/testkit';

export const medmeshPath = join(repositoryRoot, 'medmesh');

export type Ended = { code: number; stdout: string; stderr: string };

/** Words of a command line, in groups where that reads better. */
type Words = (string | readonly string[])[];

/** `./medmesh engine …args` to its end. */
export const engine = (...args: Words): Promise<Ended> =>
  new Promise((resolve) => {
    const options = { maxBuffer: 64 * 2 ** 20 };
    execFile(medmeshPath, ['engine', ...args.flat()], options, (error, stdout, stderr) => {
      const code = error === null ? 0 : typeof error.code === 'number' ? error.code : -1;
      resolve({ code, stdout, stderr });
    });
  });

/** The same for a command that must succeed: its lines of JSON. */
export async function engineLines(...args: Words): Promise<Record<string, unknown>[]> {
  const { code, stdout, stderr } = await engine(...args, '--json');
  if (code !== 0) throw new Error(`engine ${args.flat()[0]} ended with ${code}: ${stderr}`);
  return stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Record<string, unknown>);
}

/** The same for a command with one result. */
export async function engineJson(...args: Words): Promise<Record<string, unknown>> {
  const [result, ...more] = await engineLines(...args);
  if (result === undefined || more.length > 0)
    throw new Error(`engine ${args.flat()[0]} printed ${more.length + 1} lines`);
  return result;
}

/** A tiny random model of the engine's package, judged by transformers. */
export const goldenModel = (name: string): string => join(repositoryRoot, 'libs/engine/golden', name);

/** Models with adapters, NF4 vectors and five training steps, made with PEFT and bitsandbytes; undefined where they are absent. */
export function sharedGolden(name: string): string | undefined {
  const shared = sharedInputs();
  const dir = shared === null ? undefined : join(shared, 'golden', name);
  return dir !== undefined && existsSync(dir) ? dir : undefined;
}

export function writeSequences(path: string, sequences: unknown, lossMask?: unknown): string {
  writeFileSync(path, JSON.stringify(lossMask === undefined ? { sequences } : { sequences, loss_mask: lossMask }));
  return path;
}

/** The f32 tensors of a file. */
export async function readFloats(path: string): Promise<Map<string, { shape: number[]; values: Float32Array }>> {
  const tensors = await readSafetensors(path);
  return new Map(
    [...tensors].map(([name, { dtype, shape, data }]) => {
      if (dtype !== 'f32') throw new Error(`${name} is ${dtype}`);
      return [name, { shape, values: new Float32Array(data.slice().buffer) }];
    }),
  );
}

/** max |a − b| / max |b| */
export function relativeToScale(a: Float32Array, b: Float32Array): number {
  if (a.length !== b.length) return Number.POSITIVE_INFINITY;
  let worst = 0;
  let scale = 0;
  for (const [i, value] of b.entries()) {
    const difference = Math.abs((a[i] ?? Number.NaN) - value);
    if (!(difference <= worst)) worst = difference;
    scale = Math.max(scale, Math.abs(value));
  }
  return worst / scale;
}

/** ‖a − b‖ / ‖b‖ */
export function relativeError(a: Float32Array, b: Float32Array): number {
  if (a.length !== b.length) return Number.POSITIVE_INFINITY;
  let difference = 0;
  let norm = 0;
  for (const [i, value] of b.entries()) {
    difference += ((a[i] ?? Number.NaN) - value) ** 2;
    norm += value ** 2;
  }
  return difference === 0 ? 0 : Math.sqrt(difference / norm);
}
