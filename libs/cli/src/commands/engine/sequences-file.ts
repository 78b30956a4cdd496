import { readFile, stat } from 'node:fs/promises';
import { checkInputFile, pathRefusal, refusal } from './input-file.ts';

/** `{"sequences": [[ids…], …], "loss_mask": [[0 or 1…], …]}`: rows of token ids, and which of them are trained on. */
export type SequencesFile = { sequences: Uint32Array[]; lossMask: Uint8Array[] | undefined };

const maxBytes = 256 * 2 ** 20;
const knownKeys: readonly string[] = ['sequences', 'loss_mask'];

/** What a value is, without showing it: a file of the wrong kind may hold anything. */
function kind(value: unknown): string {
  if (value === undefined) return 'missing';
  if (value === null) return 'null';
  if (Array.isArray(value)) return 'a list';
  if (typeof value === 'number') return `the number ${value}`;
  if (typeof value === 'boolean') return String(value);
  return typeof value === 'string' ? 'a text' : 'an object';
}

async function readJson(path: string): Promise<Record<string, unknown>> {
  await checkInputFile(path);
  const { size } = await stat(path);
  if (size > maxBytes) throw refusal(`${path} has ${size} bytes; the limit is ${maxBytes}`);
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(await readFile(path)));
  } catch (error) {
    if (!(error instanceof SyntaxError || error instanceof TypeError)) throw pathRefusal(path, error);
    const position = /position \d+/.exec(error.message)?.[0];
    throw refusal(`${path} is not JSON${position === undefined ? '' : ` (${position})`}`);
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw refusal(`${path} is ${kind(value)}, not an object {"sequences": [[ids…], …]}`);
  return value as Record<string, unknown>;
}

function readRow(value: unknown, where: string, vocabSize: number): Uint32Array {
  if (!Array.isArray(value)) throw refusal(`${where} is ${kind(value)}, not a list of token ids`);
  if (value.length === 0) throw refusal(`${where} is empty; a sequence has at least one token id`);
  return Uint32Array.from(value, (id: unknown, i) => {
    if (typeof id !== 'number' || !Number.isInteger(id))
      throw refusal(`${where}[${i}] is ${kind(id)}, not a whole number`);
    if (id < 0 || id >= vocabSize)
      throw refusal(
        `${where}[${i}] is ${id}, outside the vocabulary; the model's ids go from 0 to ${vocabSize - 1}`,
        'TOKEN_ID_INVALID',
      );
    return id;
  });
}

function readMaskRow(value: unknown, where: string, length: number): Uint8Array {
  if (!Array.isArray(value)) throw refusal(`${where} is ${kind(value)}, not a list of 0 and 1`);
  if (value.length !== length)
    throw refusal(`${where} has ${value.length} entries, but its sequence has ${length} token ids`);
  return Uint8Array.from(value, (mark: unknown, i) => {
    if (mark !== 0 && mark !== 1 && typeof mark !== 'boolean')
      throw refusal(`${where}[${i}] is ${kind(mark)}; use 0 or 1`);
    return Number(mark);
  });
}

/** Reads and checks the whole file against a vocabulary; every fault names the place where it is. */
export async function readSequences(path: string, vocabSize: number): Promise<SequencesFile> {
  const file = await readJson(path);
  const unknown = Object.keys(file).find((key) => !knownKeys.includes(key));
  if (unknown !== undefined)
    throw refusal(
      `${path} has the key ${JSON.stringify(unknown.slice(0, 40))}; it may have ${knownKeys.join(' and ')}`,
    );
  const rows = file['sequences'];
  if (!Array.isArray(rows)) throw refusal(`${path}: sequences is ${kind(rows)}, not a list of lists of token ids`);
  if (rows.length === 0) throw refusal(`${path}: sequences is empty`);
  const sequences = rows.map((row, i) => readRow(row, `${path}: sequences[${i}]`, vocabSize));
  const marks = file['loss_mask'];
  if (marks === undefined || marks === null) return { sequences, lossMask: undefined };
  if (!Array.isArray(marks)) throw refusal(`${path}: loss_mask is ${kind(marks)}, not a list of lists of 0 and 1`);
  if (marks.length !== sequences.length)
    throw refusal(`${path}: loss_mask has ${marks.length} lists, but there are ${sequences.length} sequences`);
  const lossMask = sequences.map((ids, i) => readMaskRow(marks[i], `${path}: loss_mask[${i}]`, ids.length));
  return { sequences, lossMask };
}
