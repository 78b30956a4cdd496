import { rename, rm, writeFile } from 'node:fs/promises';

/** Writes the bound ports where whoever started the process looks for them: complete or not at all. */
export async function writePortFile(path: string, ports: { grpc: number; metrics: number }): Promise<void> {
  const partial = `${path}.${process.pid}`;
  await writeFile(partial, `${JSON.stringify({ ...ports, pid: process.pid })}\n`);
  await rename(partial, path);
}

export const removePortFile = (path: string): Promise<void> => rm(path, { force: true });
