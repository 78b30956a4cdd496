import { mkdir, readFile, rename, rm, stat, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { corrupt, digestOf, newHash } from './digest.ts';
import { fileRange } from './source.ts';

/**
 * Remembers, across processes, which files were found to hold what their digest says. A mark holds for the very file it was made for: its inode, size and
 * time of change. A mark's own time is when the blob was last used.
 */
export type VerifiedMarks = {
  /** Hashes the file unless it bears a mark. Failure `data_loss` ARTIFACT_CORRUPT. */
  check(digest: string, path: string, signal?: AbortSignal): Promise<void>;
  /** Marks a file that was hashed while it was written. */
  mark(digest: string, path: string): Promise<void>;
  lastUsedMs(hex: string): Promise<number>;
  forget(hex: string): Promise<void>;
};

let marks = 0;

export function createVerifiedMarks(folder: string, owner: string): VerifiedMarks {
  const markOf = (hex: string): string => join(folder, hex);

  async function identityOf(path: string): Promise<string> {
    const { dev, ino, size, mtimeNs } = await stat(path, { bigint: true });
    return [dev, ino, size, mtimeNs].join(' ');
  }

  async function write(hex: string, identity: string): Promise<void> {
    await mkdir(folder, { recursive: true });
    marks += 1;
    const temporary = `${markOf(hex)}.${owner}.${marks}`;
    await writeFile(temporary, identity);
    await rename(temporary, markOf(hex));
  }

  return {
    async check(digest, path, signal) {
      const hex = digest.slice('sha256:'.length);
      const identity = await identityOf(path);
      const marked = await readFile(markOf(hex), 'utf8').catch(() => '');
      if (marked === identity) {
        const now = new Date();
        await utimes(markOf(hex), now, now).catch(() => undefined);
        return;
      }
      const hash = newHash();
      for await (const piece of fileRange(path, 0, undefined, signal)) hash.update(piece);
      const seen = digestOf(hash);
      if (seen !== digest) throw corrupt(digest, seen);
      await write(hex, identity);
    },
    mark: async (digest, path) => write(digest.slice('sha256:'.length), await identityOf(path)),
    lastUsedMs: async (hex) => (await stat(markOf(hex)).catch(() => undefined))?.mtimeMs ?? 0,
    forget: (hex) => rm(markOf(hex), { force: true }),
  };
}
