import { hash } from 'node:crypto';
import type { Row } from '@medmesh/text';

/** Between fields: no normalised text holds a line feed, since it counts as white space there. */
const separator = '\n';

/**
 * 16 bytes that are equal for rows that say the same: fields in order, after Unicode composition, with every run of white
 * space as one space. The chance that two of a million different rows meet is below 10^-26.
 */
export function rowIdentity(row: Row): Buffer {
  const text = [row.shape.slice(0, 1), ...fieldsOf(row)].map(normalise).join(separator);
  return Buffer.from(hash('sha256', text, 'buffer')).subarray(0, 16);
}

/** What a row says, field by field. */
export const textsOf = (row: Row): string[] =>
  row.shape === 'conversation'
    ? row.turns.flatMap((t) => (t.reasoning === undefined ? [t.content] : [t.content, t.reasoning]))
    : fieldsOf(row);

/** A single space stays as it is, so that most texts are not copied. */
const normalise = (text: string): string =>
  text
    .normalize('NFC')
    .replace(/[^\S ]+|\s{2,}/g, ' ')
    .trim();

function fieldsOf(row: Row): string[] {
  switch (row.shape) {
    case 'reasoning':
      return [row.question, row.reasoning, row.response];
    case 'instruction':
      return [row.instruction, row.input, row.output];
    case 'conversation':
      return row.turns.flatMap((t) => [t.role, t.content, t.reasoning ?? '']);
  }
}

/**
 * Whether a row is held out. Depends on the row's identity and the seed alone: equal rows go together, and adding rows
 * moves no other.
 */
export function isHeldOut(identity: Buffer, seed: number, fraction: number): boolean {
  if (fraction === 0) return false;
  const digest = hash('sha256', Buffer.concat([Buffer.from(`${seed}:`), identity]), 'buffer');
  // 48 bits, so that the quotient is exact.
  return Buffer.from(digest).readUIntBE(0, 6) / 2 ** 48 < fraction;
}
