import { readFile } from 'node:fs/promises';
import type { DemoRow } from './rows.ts';

/** Reads one of the committed row files. */
export async function readDemoRows(path: string): Promise<DemoRow[]> {
  const lines = (await readFile(path, 'utf8')).split('\n').filter((line) => line !== '');
  return lines.map((line) => JSON.parse(line) as DemoRow);
}
