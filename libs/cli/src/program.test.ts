import { execFileSync } from 'node:child_process';
import { expect, test } from 'vitest';
import { completionScript } from './completion.ts';
import { commandName, createProgram } from './program.ts';

const program = () => createProgram({ env: {}, signal: new AbortController().signal });

test('the command line has what the README promises', async () => {
  const names = (await program()).commands.map((command) => command.name());
  for (const name of [
    'up',
    'down',
    'status',
    'model',
    'dataset',
    'finetune',
    'jobs',
    'adapter',
    'chat',
    'generate',
    'tokenize',
    'template',
    'engine',
    'completion',
    'quickstart',
  ]) {
    expect(names).toContain(name);
  }
});

test('the completion script is bash, and completes commands, subcommands and flags', async () => {
  const script = completionScript(await program(), 'bash');
  const complete = (...words: string[]) =>
    execFileSync('bash', [
      '-c',
      `${script}\nCOMP_WORDS=(medmesh ${words.map((word) => `'${word}'`).join(' ')}); COMP_CWORD=${words.length}; _medmesh; echo "\${COMPREPLY[@]}"`,
    ])
      .toString()
      .trim()
      .split(' ');
  expect(complete('fine')).toEqual(['finetune']);
  expect(complete('model', 'imp')).toEqual(['import']);
  expect(complete('model', 'import', 'folder', '--i')).toEqual(['--id']);
  expect(complete('engine', 'sc')).toEqual(['score']);
  expect(complete('engine', 'train', '--save')).toEqual(['--save-grads']);
});

test('the command is the first word that is no option and no option’s value', () => {
  expect(commandName(['--json', '--state', 'model', 'engine', 'score'])).toBe('engine');
  expect(commandName(['--address=h:1', 'jobs', 'list'])).toBe('jobs');
  expect(commandName(['--help'])).toBeUndefined();
});

test('only the files of the wanted command are loaded', async () => {
  const names = (await createProgram({ env: {}, signal: new AbortController().signal, wanted: 'engine' })).commands;
  expect(names.map((command) => command.name())).toEqual(['engine']);
});
