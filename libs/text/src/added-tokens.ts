import type { AddedToken } from './tokenizer-file.ts';

/** A stretch of text, or one added token found in it. */
export type TextPart = { readonly text: string } | { readonly token: AddedToken };

const wordCharacter = /[\p{L}\p{N}_]/u;
const escapePattern = (s: string): string => s.replace(/[\\^$.*+?()[\]{}|/-]/g, '\\$&');

/**
 * Returns a function that splits text at added tokens: leftmost first, the longest where several begin at one place,
 * as the published tokenizers do. Stretches between are never empty.
 */
export function createAddedTokenSplitter(tokens: readonly AddedToken[]): (text: string) => TextPart[] {
  if (tokens.length === 0) return (text) => (text === '' ? [] : [{ text }]);
  const byContent = new Map(tokens.map((t) => [t.content, t]));
  const longestFirst = [...byContent.keys()].sort((a, b) => b.length - a.length);
  const pattern = new RegExp(longestFirst.map(escapePattern).join('|'), 'g');
  return (text) => {
    const parts: TextPart[] = [];
    let done = 0;
    for (const match of text.matchAll(pattern)) {
      const token = byContent.get(match[0])!;
      let start = match.index;
      let end = start + match[0].length;
      if (token.singleWord && touchesWord(text, start, end)) continue;
      if (token.leftStrip) while (start > done && /\s/.test(text[start - 1]!)) start--;
      if (token.rightStrip) while (end < text.length && /\s/.test(text[end]!)) end++;
      if (start > done) parts.push({ text: text.slice(done, start) });
      parts.push({ token });
      done = end;
    }
    if (done < text.length) parts.push({ text: text.slice(done) });
    return parts;
  };
}

const touchesWord = (text: string, start: number, end: number): boolean =>
  (start > 0 && wordCharacter.test(text[start - 1]!)) || (end < text.length && wordCharacter.test(text[end]!));
