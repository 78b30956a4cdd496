import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { natsProgram } from './nats-program.ts';

test("nats-server is the project's own, else the first on the PATH that can be run, else a refusal that says what to do", () => {
  const root = mkdtempSync(join(tmpdir(), 'medmesh-nats-'));
  onTestFinished(() => rmSync(root, { recursive: true }));
  const [own, first, second] = ['own', 'first', 'second'].map((name) => join(root, name)) as [string, string, string];
  const place = (folder: string, mode: number) => {
    mkdirSync(folder);
    writeFileSync(join(folder, 'nats-server'), '');
    chmodSync(join(folder, 'nats-server'), mode);
  };
  const path = [first, second].join(delimiter);
  expect(() => natsProgram(own, path)).toThrow(
    /nats-server is neither in .*own nor on the PATH; run 'sh scripts\/setup\.sh'/,
  );
  place(first, 0o644);
  place(second, 0o755);
  expect(natsProgram(own, path)).toBe(join(second, 'nats-server'));
  place(own, 0o755);
  expect(natsProgram(own, path)).toBe(join(own, 'nats-server'));
});
