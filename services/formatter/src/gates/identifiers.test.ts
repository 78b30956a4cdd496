import { describe, expect, test } from 'vitest';
import { holdsIdentifier } from './identifiers.ts';

// All of them invented; numbers with a check digit were made to have the right one.
const found = [
  'write to o.quill+knee@hospital.example.org today',
  '身份证 11010519491231002X',
  'her number is 440524188001010014',
  'SSN 123-45-6789',
  'NHS 943 476 5919',
  'call 212-555-0123',
  'call (212) 555-0123',
  '电话13812345678。',
  '手机 138-1234-5678',
  'from abroad +44 20 7946 0958',
  'MRN: 00123456',
  'Medical record number is A-123456',
  '住院号：123456',
  '病历号 ZY20231234',
  'ＭＲＮ：００１２３４５６',
];
const notFound = [
  'blood pressure 120/80, heart rate 72, temperature 38.5',
  'platelets 150000 to 450000 per microlitre',
  'give 500-1000 mg every 6-8 hours for 7-10 days',
  'PMID 12345678 and ISBN 9783161484100',
  '血压120/80mmHg，白细胞12.5×10^9/L，体温38.5℃',
  '2024-01-15 10:30:45',
  'sequence 123456789012345678',
  'the ratio 143 176 5918 in a table',
  'an e-mail was sent; see @home',
  'the patient number of days was 12',
];

describe('the identifier gate', () => {
  test.each(found)('finds one in: %s', (text) => expect(holdsIdentifier(text)).toBe(true));
  test.each(notFound)('finds none in: %s', (text) => expect(holdsIdentifier(text)).toBe(false));

  test('takes time in proportion to the text, whatever it holds', () => {
    // Each would take minutes if a pattern went back over what it had read.
    for (const text of [
      'a'.repeat(1_000_000),
      `${'a.'.repeat(500_000)}@`,
      '1'.repeat(1_000_000),
      '+1 23'.repeat(200_000),
    ]) {
      expect(holdsIdentifier(text)).toBe(false);
    }
  });
});
