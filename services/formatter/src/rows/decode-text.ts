import { isUtf8 } from 'node:buffer';
import type { Warn } from './raw-row.ts';

/**
 * Stands behind bytes that are not valid in the declared encoding. A Unicode noncharacter: no text holds it, so a row
 * that does was damaged, or was made to look so.
 */
export const damageMark = '\uFDD0';

/** Decodes bytes to text in chunks. Invalid bytes are marked, never replaced in silence. */
export async function* decodeText(
  bytes: AsyncIterable<Uint8Array>,
  charset: string,
  warn: Warn,
): AsyncGenerator<string> {
  yield* dropByteOrderMark(charset === 'utf-8' ? decodeUtf8(bytes) : decodeOther(bytes, charset), warn);
}

async function* dropByteOrderMark(chunks: AsyncIterable<string>, warn: Warn): AsyncGenerator<string> {
  let first = true;
  for await (const chunk of chunks) {
    if (chunk === '') continue;
    if (first && chunk.startsWith('\uFEFF')) {
      warn('a byte order mark was removed');
      yield chunk.slice(1);
    } else {
      yield chunk;
    }
    first = false;
  }
}

async function* decodeUtf8(bytes: AsyncIterable<Uint8Array>): AsyncGenerator<string> {
  let rest: Buffer = Buffer.alloc(0);
  for await (const chunk of bytes) {
    const data = rest.length === 0 ? asBuffer(chunk) : Buffer.concat([rest, chunk]);
    const end = data.length - unfinishedLength(data);
    yield decodeMarked(data.subarray(0, end));
    rest = data.subarray(end);
  }
  if (rest.length > 0) yield decodeMarked(rest);
}

/** Decodes line by line where something is wrong, so that the mark falls into the row that is damaged. */
function decodeMarked(data: Buffer): string {
  if (isUtf8(data)) return data.toString('utf8');
  let text = '';
  for (let start = 0; start < data.length; ) {
    const feed = data.indexOf(0x0a, start);
    const end = feed < 0 ? data.length : feed + 1;
    const line = data.subarray(start, end);
    text += isUtf8(line) ? line.toString('utf8') : damageMark + line.toString('utf8');
    start = end;
  }
  return text;
}

/** Bytes at the end that begin a character and do not end it. */
function unfinishedLength(data: Buffer): number {
  for (let n = 1; n <= Math.min(3, data.length); n++) {
    const byte = data[data.length - n]!;
    if ((byte & 0xc0) === 0x80) continue;
    const needs = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
    return needs > n ? n : 0;
  }
  return 0;
}

async function* decodeOther(bytes: AsyncIterable<Uint8Array>, charset: string): AsyncGenerator<string> {
  const decoder = new TextDecoder(charset, { ignoreBOM: true });
  // U+FFFD stands for what cannot be decoded. A file in another encoding than UTF-8 has none of its own.
  const marked = (text: string): string => text.replaceAll('\uFFFD', damageMark);
  for await (const chunk of bytes) yield marked(decoder.decode(chunk, { stream: true }));
  yield marked(decoder.decode());
}

const asBuffer = (bytes: Uint8Array): Buffer => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
