import { seededRandom } from '@medmesh/testkit';
import { describe, expect, test } from 'vitest';
import { createNearDuplicates } from './near-duplicates.ts';

const random = seededRandom(5);
const word = (): string => Array.from({ length: 6 }, () => String.fromCharCode(97 + random.uniform() * 26)).join('');
const wordsOf = (count: number): string[] => Array.from({ length: count }, word);
/** The text with `count` words spread evenly replaced by others. */
const changed = (words: readonly string[], count: number): string[] =>
  words.map((w, i) =>
    Math.floor((i * count) / words.length) < Math.floor(((i + 1) * count) / words.length) ? word() : w,
  );
const rate = (similarity: number, replaced: number): number => {
  const found = Array.from({ length: 200 }, () => {
    const near = createNearDuplicates(similarity);
    const words = wordsOf(200);
    near.add(words.join(' '));
    return near.add(changed(words, replaced).join(' '));
  });
  return found.filter(Boolean).length / found.length;
};

describe('near-duplicates at a similarity of 0.8', () => {
  // One word in 200 touches five of 196 shingles: similarity (196 - 5) / (196 + 5) = 0.95; ten leave 0.59, twenty 0.32.
  test('are found where one word of two hundred is another', () => expect(rate(0.8, 1)).toBeGreaterThan(0.98));
  test('are seldom found where ten are', () => expect(rate(0.8, 10)).toBeLessThan(0.02));
  test('are never found where twenty are', () => expect(rate(0.8, 20)).toBe(0));

  test('are found whatever letter case, white space and punctuation do', () => {
    const near = createNearDuplicates(1);
    expect(near.add('The knee hurts, since Monday; no fever was seen.')).toBe(false);
    expect(near.add('the KNEE hurts since  monday, no fever\nwas seen')).toBe(true);
  });

  test('are found in Chinese, where a letter is a word', () => {
    const text =
      '患者转移性右下腹痛二十四小时，伴发热、恶心，麦氏点压痛及反跳痛阳性，血常规提示白细胞升高，考虑急性阑尾炎，建议尽早手术治疗。';
    const near = createNearDuplicates(0.7);
    expect(near.add(text)).toBe(false);
    expect(near.add(text.replace('尽早', '及时'))).toBe(true);
    expect(
      near.add(
        '患者左膝疼痛三天，活动后加重，无发热，查体见关节肿胀及压痛，影像学检查未见骨折，建议休息、冰敷并两周后复诊。',
      ),
    ).toBe(false);
  });

  test('are told from short texts that merely look alike', () => {
    const near = createNearDuplicates(0.8);
    expect(near.add('yes')).toBe(false);
    expect(near.add('no')).toBe(false);
    expect(near.add('yes')).toBe(true);
    expect(near.add('')).toBe(false);
    expect(near.add(' . ')).toBe(true);
  });
});

test('ten thousand different rows pass, also those that share a long form', () => {
  const near = createNearDuplicates(0.9);
  const form = 'please state the complaint of the patient and how long it has been there';
  let passed = 0;
  for (let i = 0; i < 10_000; i++) passed += Number(!near.add(`${form} ${wordsOf(12).join(' ')}`));
  expect(passed).toBe(10_000);
});
