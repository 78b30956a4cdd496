import { names } from '@medmesh/catalog';
import { Failure, invalidField } from '@medmesh/errors';
import { isDigest } from '@medmesh/objects';
import type { dataset } from '@medmesh/proto';
import type { FormatterDeps } from './deps.ts';

const maxChunkBytes = 2 ** 20;
const maxFileNameLength = 255;

/** Stores a file of rows as a blob. What is not the announced size or digest is refused, and nothing of it is kept. */
export async function uploadFile(
  deps: Pick<FormatterDeps, 'store' | 'config'>,
  messages: AsyncIterable<dataset.UploadDatasetFileRequest>,
  signal: AbortSignal,
): Promise<dataset.UploadDatasetFileResponse> {
  const iterator = messages[Symbol.asyncIterator]();
  const first = await iterator.next();
  const header = first.done === true ? undefined : first.value.data;
  if (header?.$case !== 'header') throw invalidField('header', 'the first message of an upload must be the header');
  const { parent, fileName, sizeBytes, digest } = header.value;
  names.project.parse(parent);
  checkFileName(fileName);
  if (digest !== '' && !isDigest(digest)) throw invalidField('header.digest', 'is not sha256:<64 hex digits>');
  const limit = deps.config.MAX_UPLOAD_BYTES;
  if (sizeBytes < 0 || sizeBytes > limit)
    throw invalidField('header.size_bytes', `is ${sizeBytes}; at most ${limit} are accepted`);

  // The store keeps nothing of a source that ends with an error, so every check happens before the end.
  async function* chunks(): AsyncGenerator<Uint8Array> {
    let received = 0;
    for (let next = await iterator.next(); next.done !== true; next = await iterator.next()) {
      const { data } = next.value;
      if (data?.$case !== 'chunk') throw invalidField('chunk', 'every message after the header must be a chunk');
      if (data.value.length > maxChunkBytes)
        throw invalidField('chunk', `has ${data.value.length} bytes; send at most ${maxChunkBytes}`);
      received += data.value.length;
      if (received > limit) throw invalidField('chunk', `the file has more than ${limit} bytes`);
      if (sizeBytes > 0 && received > sizeBytes) throw sizeMismatch(sizeBytes, `at least ${received}`);
      yield data.value;
    }
    if (sizeBytes > 0 && received !== sizeBytes) throw sizeMismatch(sizeBytes, `${received}`);
  }
  return deps.store.putBlob(chunks(), { signal, ...(digest === '' ? {} : { expectedDigest: digest }) });
}

/** A URL that takes the bytes by HTTP PUT, where the store has such a thing. */
export async function createUploadUrl(
  deps: Pick<FormatterDeps, 'store' | 'config'>,
  request: dataset.CreateUploadUrlRequest,
): Promise<dataset.CreateUploadUrlResponse> {
  const { project } = names.project.parse(request.parent);
  checkFileName(request.fileName);
  const seconds = deps.config.UPLOAD_URL_TTL_SECONDS;
  const expireTime = new Date(Date.now() + seconds * 1000);
  // A key of its own for each upload; the file's ending stays, since it tells the format.
  const key = `${project}/${crypto.randomUUID()}/${request.fileName}`;
  return { ...(await deps.store.presignPut(key, seconds)), expireTime };
}

function checkFileName(name: string): void {
  if (/^[^/\\\p{Cc}]+$/u.test(name) && name.length <= maxFileNameLength && name !== '.' && name !== '..') return;
  throw invalidField(
    'file_name',
    `must be a plain file name of 1 to ${maxFileNameLength} characters, without a folder`,
  );
}

const sizeMismatch = (expected: number, received: string): Failure =>
  new Failure('data_loss', `the upload has ${received} bytes, its header said ${expected}; send the file again`, {
    reason: 'SIZE_MISMATCH',
  });
