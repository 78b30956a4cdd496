import { Failure } from '@medmesh/errors';

const plain = /^[A-Za-z0-9_-]$/;

/**
 * Writes any text as one token of a NATS subject or KV key: letters, digits, `_` and `-` stay, every other byte of its UTF-8 becomes `=XX`.
 * Equal texts give equal tokens and different texts different ones; `decodeToken` is the inverse.
 * @throws Failure `invalid_argument` for empty text, which no token can stand for.
 */
export function encodeToken(text: string): string {
  if (text === '') throw new Failure('invalid_argument', 'a name has an empty part', { reason: 'NAME_INVALID' });
  let token = '';
  for (const character of text) {
    if (plain.test(character)) token += character;
    else for (const byte of Buffer.from(character)) token += `=${byte.toString(16).toUpperCase().padStart(2, '0')}`;
  }
  return token;
}

/** The text that `encodeToken` made this token of. */
export function decodeToken(token: string): string {
  const bytes: number[] = [];
  for (let i = 0; i < token.length; i += 1) {
    if (token[i] === '=') {
      bytes.push(Number.parseInt(token.slice(i + 1, i + 3), 16));
      i += 2;
    } else {
      bytes.push(token.charCodeAt(i));
    }
  }
  return Buffer.from(bytes).toString();
}
