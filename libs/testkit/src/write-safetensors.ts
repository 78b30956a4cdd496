import { closeSync, openSync, writeSync } from 'node:fs';

export type WrittenDtype = 'F32' | 'BF16';

/** A tensor to write: row-major values, converted to `dtype` on the way. */
export type TensorSource = { name: string; dtype: WrittenDtype; shape: readonly number[]; values: Float32Array };

const widths: Record<WrittenDtype, number> = { F32: 4, BF16: 2 };

/**
 * Writes a safetensors file: 8 bytes of header length, a JSON header padded with spaces to a multiple of 8, then the tensors one after
 * another. Written apart from the engine, so that a test of the engine's reader does not read what the same hand wrote.
 */
export function writeSafetensors(
  path: string,
  tensors: readonly TensorSource[],
  metadata: Record<string, string> = { format: 'pt' },
): void {
  const header: Record<string, unknown> = { __metadata__: metadata };
  let offset = 0;
  for (const { name, dtype, shape, values } of tensors) {
    const count = shape.reduce((product, size) => product * size, 1);
    if (count !== values.length)
      throw new Error(`tensor ${name} has ${values.length} values, its shape [${shape.join(', ')}] needs ${count}`);
    const end = offset + count * widths[dtype];
    header[name] = { dtype, shape, data_offsets: [offset, end] };
    offset = end;
  }
  const json = JSON.stringify(header);
  const length = Math.ceil(Buffer.byteLength(json) / 8) * 8;
  const head = Buffer.alloc(8 + length, ' ');
  head.writeBigUInt64LE(BigInt(length), 0);
  head.write(json, 8);

  const file = openSync(path, 'w');
  try {
    writeSync(file, head);
    for (const { dtype, values } of tensors) {
      if (values.length === 0) continue;
      writeSync(
        file,
        dtype === 'F32' ? Buffer.from(values.buffer, values.byteOffset, values.byteLength) : toBfloat16(values),
      );
    }
  } finally {
    closeSync(file);
  }
}

/** The upper half of each float, rounded to nearest, ties to even. Finite values only. */
function toBfloat16(values: Float32Array): Buffer {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const halves = new Uint16Array(bits.length);
  for (let i = 0; i < bits.length; i += 1) {
    const word = bits[i]!;
    halves[i] = (word + 0x7fff + ((word >>> 16) & 1)) >>> 16;
  }
  return Buffer.from(halves.buffer);
}
