import { mkdirSync, readdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { tempDir } from '@medmesh/testkit';
import { expect, test } from 'vitest';
import { checkOutputFile, checkOutputFolder } from './output-path.ts';

const plain = { force: false, inputs: [] };
const forced = { force: true, inputs: [] };

test('a file may be new or empty; one with contents is replaced only with force', async () => {
  const dir = tempDir();
  writeFileSync(join(dir, 'empty'), '');
  writeFileSync(join(dir, 'full'), 'x');
  mkdirSync(join(dir, 'folder'));
  await checkOutputFile(join(dir, 'new'), plain);
  await checkOutputFile(join(dir, 'empty'), plain);
  await checkOutputFile(join(dir, 'full'), forced);
  await expect(checkOutputFile(join(dir, 'full'), plain)).rejects.toThrow('full exists; add --force');
  await expect(checkOutputFile(join(dir, 'folder'), forced)).rejects.toThrow('is a folder; name a file');
  await expect(checkOutputFile('/dev/null', forced)).rejects.toThrow('is no plain file');
  expect(readdirSync(dir).sort()).toEqual(['empty', 'folder', 'full']);
});

test('a place where nothing can be made is refused before any work, and root is no exception', async () => {
  const dir = tempDir();
  writeFileSync(join(dir, 'file'), 'x');
  await expect(checkOutputFile(join(dir, 'no', 'out'), plain)).rejects.toThrow(/no, the folder of .*, does not exist/);
  await expect(checkOutputFile(join(dir, 'file', 'out'), plain)).rejects.toThrow('a part of its path is a file');
  await expect(checkOutputFile('/proc/out', plain)).rejects.toThrow('nothing can be written in /proc');
  await checkOutputFolder(join(dir, 'a', 'b', 'c'), 'config.json', plain);
  await expect(checkOutputFolder('/proc/a/b', 'config.json', plain)).rejects.toThrow('nothing can be written in /proc');
  expect(readdirSync(dir)).toEqual(['file']);
});

test('an input, or a folder that holds one, is never replaced, by whatever name it is called', async () => {
  const dir = tempDir();
  mkdirSync(join(dir, 'model'));
  writeFileSync(join(dir, 'model', 'config.json'), '{}');
  symlinkSync(join(dir, 'model'), join(dir, 'link'));
  const rules = { force: true, inputs: [join(dir, 'model')] };
  for (const name of ['model', 'link', 'model/../model', '.'])
    await expect(checkOutputFolder(join(dir, name), 'config.json', rules), name).rejects.toThrow(
      'would replace the input',
    );
  await checkOutputFolder(join(dir, 'model-2'), 'config.json', rules);
});

test('force replaces an earlier result only', async () => {
  const dir = tempDir();
  const make = (name: string, ...files: string[]) => {
    mkdirSync(join(dir, name));
    for (const file of files) writeFileSync(join(dir, name, file), 'x');
    return join(dir, name);
  };
  await checkOutputFolder(make('result', 'config.json', 'model.safetensors'), 'config.json', forced);
  await checkOutputFolder(make('nothing'), 'config.json', plain);
  await expect(checkOutputFolder(make('notes', 'diary'), 'config.json', forced)).rejects.toThrow('no earlier result');
  const home = make('home', 'config.json');
  mkdirSync(join(home, 'documents'));
  await expect(checkOutputFolder(home, 'config.json', forced)).rejects.toThrow('no earlier result');
});
