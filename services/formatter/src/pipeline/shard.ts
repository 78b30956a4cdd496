import { Failure } from '@medmesh/errors';

/**
 * A shard of tokenised rows: T tokens of N rows, back to back.
 *   inputIds [T]     token ids
 *   lossMask [T]     1 where the token counts in the loss
 *   rowOffsets [N+1] row i is tokens rowOffsets[i] to rowOffsets[i+1]
 *   rowIndex [N]     the row's index over all sources
 */
export type Shard = {
  readonly inputIds: Uint32Array;
  readonly lossMask: Uint8Array;
  readonly rowOffsets: BigUint64Array;
  readonly rowIndex: Uint32Array;
};

/** In the file's order: widest first, so that every tensor is aligned to its own type. */
const layout = [
  { name: 'row_offsets', dtype: 'U64', bytes: 8 },
  { name: 'input_ids', dtype: 'U32', bytes: 4 },
  { name: 'row_index', dtype: 'U32', bytes: 4 },
  { name: 'loss_mask', dtype: 'U8', bytes: 1 },
] as const;

type TensorName = (typeof layout)[number]['name'];

/**
 * A shard as a safetensors file. Equal shards give equal bytes. Writes to `buffer` where it is large enough, and returns a
 * view of it: a large buffer for each of many shards would scatter the process's memory.
 */
export function encodeShard(shard: Shard, buffer?: Buffer): Buffer {
  const data: Record<TensorName, ArrayBufferView & { readonly length: number }> = {
    row_offsets: shard.rowOffsets,
    input_ids: shard.inputIds,
    row_index: shard.rowIndex,
    loss_mask: shard.lossMask,
  };
  let end = 0;
  const header: Record<string, unknown> = {};
  for (const { name, dtype } of layout) {
    const { byteLength, length } = data[name];
    header[name] = { dtype, shape: [length], data_offsets: [end, end + byteLength] };
    end += byteLength;
  }
  const json = JSON.stringify(header);
  const headerLength = Math.ceil(json.length / 8) * 8;
  const size = 8 + headerLength + end;
  const file = buffer !== undefined && buffer.length >= size ? buffer.subarray(0, size) : Buffer.allocUnsafeSlow(size);
  file.writeBigUInt64LE(BigInt(headerLength), 0);
  file.write(json.padEnd(headerLength, ' '), 8, 'latin1');
  let at = 8 + headerLength;
  for (const { name } of layout) {
    const { buffer, byteOffset, byteLength } = data[name];
    file.set(new Uint8Array(buffer, byteOffset, byteLength), at);
    at += byteLength;
  }
  return file;
}

/** Reads a shard back. Failure `data_loss` if the bytes are not what `encodeShard` writes. */
export function decodeShard(bytes: Uint8Array): Shard {
  // An own copy: typed arrays need an aligned start.
  const file = Uint8Array.from(bytes);
  const view = new DataView(file.buffer);
  const headerLength = file.length < 8 ? -1 : Number(view.getBigUint64(0, true));
  const first = 8 + headerLength;
  if (headerLength < 2 || headerLength % 8 !== 0 || first > file.length)
    throw corrupt('its header has an impossible length');
  const tensors = parseHeader(new TextDecoder().decode(file.subarray(8, first)));
  const slices = new Map<TensorName, ArrayBuffer>();
  let at = 0;
  for (const { name, dtype, bytes: width } of layout) {
    const t = tensors[name];
    const [start, end] = t?.data_offsets ?? [-1, -1];
    const sound =
      t?.dtype === dtype && start === at && end - start === (t.shape?.[0] ?? -1) * width && first + end <= file.length;
    if (!sound) throw corrupt(`${name} is not where and what it should be`);
    slices.set(name, file.buffer.slice(first + start, first + end));
    at = end;
  }
  if (first + at !== file.length) throw corrupt('it has bytes after its last tensor');
  const shard = {
    inputIds: new Uint32Array(slices.get('input_ids')!),
    lossMask: new Uint8Array(slices.get('loss_mask')!),
    rowOffsets: new BigUint64Array(slices.get('row_offsets')!),
    rowIndex: new Uint32Array(slices.get('row_index')!),
  };
  const ordered = shard.rowOffsets.every((o, i) => i === 0 || o > shard.rowOffsets[i - 1]!);
  const spans = shard.rowOffsets[0] === 0n && shard.rowOffsets.at(-1) === BigInt(shard.inputIds.length);
  if (
    !ordered ||
    !spans ||
    shard.rowIndex.length !== shard.rowOffsets.length - 1 ||
    shard.lossMask.length !== shard.inputIds.length
  ) {
    throw corrupt('its row offsets do not span its tokens');
  }
  return shard;
}

type Header = Partial<Record<string, { dtype?: unknown; shape?: number[]; data_offsets?: [number, number] }>>;

function parseHeader(json: string): Header {
  let header: unknown;
  try {
    header = JSON.parse(json);
  } catch {
    throw corrupt('its header is not JSON');
  }
  if (typeof header !== 'object' || header === null) throw corrupt('its header is not an object');
  return header as Header;
}

const corrupt = (why: string): Failure =>
  new Failure('data_loss', `the shard is damaged: ${why}; build the dataset version again`, {
    reason: 'SHARD_CORRUPT',
  });
