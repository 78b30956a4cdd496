import { Failure } from '@medmesh/errors';
import { createNumberSet } from './number-set.ts';
import { someWindow } from './windows.ts';
import { comparable, wordHash, wordsOf } from './words.ts';

/** An overlap is so many words in a row, or so many characters in a row: in a script without spaces words are letters. */
const windowWords = 13;
const windowCharacters = 64;
/** Text of all evaluation sets together, in UTF-16 code units. A window of each kind begins at nearly every one: 11 to 22 bytes of memory for each. */
const maxCharacters = 8 * 2 ** 20;

/** What evaluation sets hold, as hashes of their windows. No text is kept. */
export type EvaluationOverlap = {
  /** Takes a text of an evaluation set. Failure `failed_precondition` EVALUATION_TOO_LARGE beyond the bound. */
  add(text: string): void;
  /** Whether a text shares a window with any that was taken. A row that shares none is taken for one that does about once in a million. */
  overlaps(text: string): boolean;
};

export function createEvaluationOverlap(): EvaluationOverlap {
  const words = createNumberSet();
  const characters = createNumberSet();
  let length = 0;
  return {
    add(text) {
      length += text.length;
      if (length > maxCharacters) {
        throw new Failure(
          'failed_precondition',
          `the evaluation sets hold more than ${maxCharacters} characters; name fewer or smaller ones`,
          { reason: 'EVALUATION_TOO_LARGE' },
        );
      }
      const normal = comparable(text);
      const collect = (set: typeof words) => (hash: number) => {
        set.add(hash + 1);
        return false;
      };
      someWindow(spacedWords(normal), windowWords, collect(words));
      someWindow(denseCharacters(normal), windowCharacters, collect(characters));
    },
    overlaps(text) {
      const normal = comparable(text);
      return (
        (words.size > 0 && someWindow(spacedWords(normal), windowWords, (hash) => words.has(hash + 1))) ||
        (characters.size > 0 &&
          someWindow(denseCharacters(normal), windowCharacters, (hash) => characters.has(hash + 1)))
      );
    },
  };
}

const unspaced = /^[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]$/u;

/** Words of scripts that write spaces: thirteen Chinese characters in a row are a phrase, not a passage. */
const spacedWords = (text: string): number[] =>
  wordsOf(text)
    .filter((word) => !unspaced.test(word))
    .map(wordHash);

/** Characters without white space, which is set differently in every copy. */
function denseCharacters(text: string): Uint16Array {
  const dense = text.replace(/\s+/g, '');
  return Uint16Array.from({ length: dense.length }, (_, i) => dense.charCodeAt(i));
}
