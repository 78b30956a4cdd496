import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { tempDir } from '@medmesh/testkit';
import { expect, test } from 'vitest';
import { readSequences } from './sequences-file.ts';

const written = (text: string | Uint8Array): string => {
  const path = join(tempDir(), 'rows.json');
  writeFileSync(path, text);
  return path;
};

test('rows and mask are read as they are', async () => {
  expect(await readSequences(written('{"sequences": [[0, 9], [3]]}'), 10)).toEqual({
    sequences: [Uint32Array.of(0, 9), Uint32Array.of(3)],
    lossMask: undefined,
  });
  const file = await readSequences(written('{"loss_mask": [[0, true]], "sequences": [[0, 9]]}'), 10);
  expect(file.lossMask).toEqual([Uint8Array.of(0, 1)]);
  expect((await readSequences(written('{"sequences": [[1]], "loss_mask": null}'), 10)).lossMask).toBeUndefined();
});

test('every fault is refused by its place', async () => {
  const cases: [text: string | Uint8Array, words: string][] = [
    ['', 'is not JSON'],
    ['{"sequences": [[1 2]]}', 'is not JSON (position 18)'],
    [Uint8Array.of(0x22, 0xff, 0x22), 'is not JSON'],
    ['[[1, 2]]', 'is a list, not an object'],
    ['{}', 'sequences is missing'],
    ['{"sequences": 1}', 'sequences is the number 1, not a list'],
    ['{"sequences": []}', 'sequences is empty'],
    ['{"sequences": [1, 2]}', 'sequences[0] is the number 1, not a list of token ids'],
    ['{"sequences": [[1], 2]}', 'sequences[1] is the number 2, not a list of token ids'],
    ['{"sequences": [[1], []]}', 'sequences[1] is empty'],
    ['{"sequences": [[[1]]]}', 'sequences[0][0] is a list, not a whole number'],
    ['{"sequences": [[1, 1.5]]}', 'sequences[0][1] is the number 1.5, not a whole number'],
    ['{"sequences": [["fever"]]}', 'sequences[0][0] is a text, not a whole number'],
    ['{"sequences": [[1, -1]]}', "sequences[0][1] is -1, outside the vocabulary; the model's ids go from 0 to 9"],
    ['{"sequences": [[1], [2, 10]]}', 'sequences[1][1] is 10, outside the vocabulary'],
    ['{"sequences": [[1]], "mask": [[1]]}', 'has the key "mask"; it may have sequences and loss_mask'],
    ['{"sequences": [[1]], "loss_mask": [1]}', 'loss_mask[0] is the number 1, not a list'],
    ['{"sequences": [[1]], "loss_mask": "all"}', 'loss_mask is a text, not a list'],
    ['{"sequences": [[1]], "loss_mask": []}', 'loss_mask has 0 lists, but there are 1 sequences'],
    ['{"sequences": [[1, 2]], "loss_mask": [[1]]}', 'loss_mask[0] has 1 entries, but its sequence has 2 token ids'],
    ['{"sequences": [[1, 2]], "loss_mask": [[1, 2]]}', 'loss_mask[0][1] is the number 2; use 0 or 1'],
    [Uint8Array.of(0x80, 0x04, 0x95), 'is a pickle'],
  ];
  for (const [text, words] of cases) {
    const path = written(text);
    const seen: unknown = await readSequences(path, 10).catch((error: unknown) => error);
    expect(seen, words).toMatchObject({ code: 'invalid_argument', message: expect.stringContaining(words) });
    expect((seen as Error).message.startsWith(path)).toBe(true);
  }
});

test('a refusal shows no text of the file', async () => {
  const path = written('{"sequences": ["the patient has a fever"');
  await expect(readSequences(path, 10)).rejects.toThrow(/^((?!patient).)*$/s);
});

test('what is no file is refused', async () => {
  const dir = tempDir();
  mkdirSync(join(dir, 'folder'));
  await expect(readSequences(join(dir, 'folder'), 10)).rejects.toThrow('is a folder, not a file');
  await expect(readSequences(join(dir, 'absent'), 10)).rejects.toThrow('does not exist');
  await expect(readSequences('/dev/null', 10)).rejects.toThrow('is no plain file');
});
