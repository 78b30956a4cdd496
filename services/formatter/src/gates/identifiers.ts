/**
 * Finds patient identifiers: e-mail addresses, telephone numbers, national identity numbers, and numbers that are named as
 * record numbers, in English and Chinese text. Numbers with a check digit count only if it is right, so that laboratory
 * values stay. What has no form of its own, such as a name, is not found: a gate against accidents, not a proof of
 * anonymity.
 */
export function holdsIdentifier(text: string): boolean {
  const plain = text.normalize('NFKC');
  return patterns.some(({ pattern, accepts }) => {
    for (const match of plain.matchAll(pattern)) if (accepts === undefined || accepts(match[0])) return true;
    return false;
  });
}

type IdentifierPattern = { readonly pattern: RegExp; readonly accepts?: (found: string) => boolean };

const patterns: readonly IdentifierPattern[] = [
  // E-mail address.
  { pattern: /[\p{L}\p{N}._%+-]{1,64}@[\p{L}\p{N}-]{1,63}(?:\.[\p{L}\p{N}-]{1,63})*\.\p{L}{2,24}/gu },
  // Resident identity number of China: 17 digits, and a check digit or X.
  { pattern: /(?<!\d)\d{17}[\dXx](?!\d)/g, accepts: isResidentNumber },
  // Social security number of the United States.
  { pattern: /(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])/g },
  // NHS number of England: 3-3-4 digits, the last a check digit.
  {
    pattern: /(?<![\d.-])\d{3}[ -]\d{3}[ -]\d{4}(?![\d-])/g,
    accepts: (found) => isNhsNumber(found) || isAmericanPhone(found),
  },
  // Telephone numbers: mobile in China, with area code in North America, in the international form.
  { pattern: /(?<!\d)(?:\+?86[- ]?)?1[3-9]\d[- ]?\d{4}[- ]?\d{4}(?!\d)/g },
  { pattern: /(?<![\d.])\(\d{3}\) ?\d{3}-\d{4}(?!\d)/g },
  { pattern: /(?<![\d.])\+[1-9]\d{0,2}(?:[ -]?\d{2,4}){2,5}(?!\d)/g, accepts: (found) => digitsOf(found).length >= 9 },
  // Numbers that are called by their name.
  {
    pattern:
      /\b(?:MRN|medical record (?:number|no\.?)|patient (?:id|number|no\.?)|hospital (?:number|no\.?)|passport (?:number|no\.?)|SSN|NHS (?:number|no\.?))\s*(?:is|[:#=])?\s*#?[A-Z]{0,3}-?\d{4,}/gi,
  },
  {
    pattern:
      /(?:病历号|病案号|住院号|门诊号|就诊卡号|身份证号?码?|医保卡?号|护照号)\s*(?:为|是|[::=])?\s*[A-Za-z]{0,3}\d{4,}/g,
  },
];

const digitsOf = (text: string): string => text.replace(/\D/g, '');

/** GB 11643: the weighted sum of all eighteen places is 1 modulo 11, and the date of birth exists. */
function isResidentNumber(text: string): boolean {
  const weights = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2, 1];
  const values = Array.from(text, (c) => (c === 'X' || c === 'x' ? 10 : Number(c)));
  const sum = values.reduce((n, value, i) => n + value * weights[i]!, 0);
  const [month, day] = [Number(text.slice(10, 12)), Number(text.slice(12, 14))];
  return sum % 11 === 1 && month >= 1 && month <= 12 && day >= 1 && day <= 31;
}

/** The sum of the first nine digits weighted 10 to 2, and the tenth, is a multiple of 11. */
function isNhsNumber(text: string): boolean {
  const digits = digitsOf(text);
  const sum = digits.split('').reduce((n, digit, i) => n + Number(digit) * (i === 9 ? 1 : 10 - i), 0);
  return sum % 11 === 0;
}

/** Area code and exchange begin with 2 to 9. */
const isAmericanPhone = (text: string): boolean => /^[2-9]\d\d.[2-9]/.test(text);
