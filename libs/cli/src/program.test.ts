import { execFileSync } from 'node:child_process';
import { expect, test } from 'vitest';
import { completionScript } from './completion.ts';
import { createProgram } from './program.ts';

const program = () => createProgram({}, new AbortController().signal);

test('the command line has what the README promises', () => {
  const names = program().commands.map((command) => command.name());
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
    'completion',
    'quickstart',
  ]) {
    expect(names).toContain(name);
  }
});

test('the completion script is bash, and completes commands, subcommands and flags', () => {
  const script = completionScript(program(), 'bash');
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
});
