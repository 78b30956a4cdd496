import { toEngineError } from './errors.ts';
import { type ModelHandle, native } from './native.ts';
import type { CacheChange, CacheWatch } from './types.ts';

const scopeWords = 8;

/** The addon's words as changes (addon/generation.h, watch_cache). */
function changesOf(words: Uint32Array): CacheChange[] {
  const changes: CacheChange[] = [];
  let at = 0;
  const word = () => words[at++] ?? 0;
  const node = () => word() + word() * 2 ** 32;
  while (at < words.length) {
    if (word() === 0) {
      changes.push({ kind: 'removed', node: node() });
      continue;
    }
    const [own, parent] = [node(), node()];
    const scope = new Uint8Array(words.slice(at, at + scopeWords).buffer);
    at += scopeWords;
    const count = word();
    changes.push({ kind: 'stored', node: own, parent, scope, tokens: words.slice(at, at + count) });
    at += count;
  }
  return changes;
}

export function watchCache(
  model: ModelHandle,
  onChanges: (changes: CacheChange[], whole: boolean) => void,
  onEnd: () => void,
): CacheWatch {
  try {
    const { watch, callback, blockTokens } = native.watchCache(model, (words, whole) => {
      if (words === null) onEnd();
      else onChanges(changesOf(words), whole);
    });
    return { blockTokens, stop: () => native.unwatchCache(model, watch, callback) };
  } catch (error) {
    throw toEngineError(error);
  }
}
