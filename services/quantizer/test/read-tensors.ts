import { readFileSync } from 'node:fs';

export type Tensor = { dtype: string; shape: number[]; bytes: Buffer };

/** Reads a safetensors file whole, apart from the engine: what the engine writes is judged by another hand. */
export function readTensors(path: string): { tensors: Map<string, Tensor>; metadata: Record<string, string> } {
  const file = readFileSync(path);
  const start = 8 + Number(file.readBigUInt64LE(0));
  type Entry = { dtype: string; shape: number[]; data_offsets: [number, number] };
  const { __metadata__: metadata = {}, ...entries } = JSON.parse(file.subarray(8, start).toString()) as Record<
    string,
    Entry
  > & {
    __metadata__?: Record<string, string>;
  };
  const tensors = Object.entries(entries).map(
    ([
      name,
      {
        dtype,
        shape,
        data_offsets: [from, to],
      },
    ]): [string, Tensor] => {
      // A copy, so that views of any width are aligned.
      return [name, { dtype, shape, bytes: Buffer.from(file.subarray(start + from, start + to)) }];
    },
  );
  return { tensors: new Map(tensors), metadata: metadata as Record<string, string> };
}

const bytesOf = (tensor: Tensor) =>
  tensor.bytes.buffer.slice(tensor.bytes.byteOffset, tensor.bytes.byteOffset + tensor.bytes.length);

/** A F32 or BF16 tensor's values. */
export function floatsOf(tensor: Tensor): Float32Array {
  if (tensor.dtype === 'F32') return new Float32Array(bytesOf(tensor) as ArrayBuffer);
  if (tensor.dtype !== 'BF16') throw new Error(`${tensor.dtype} is not a float type that tests read`);
  const halves = new Uint16Array(bytesOf(tensor) as ArrayBuffer);
  return new Float32Array(Uint32Array.from(halves, (half) => half << 16).buffer);
}

/** The weight `name` of a bitsandbytes NF4 file: absmax_i = map[q_i] · nested_absmax[i / 256] + offset; w = codebook[code] · absmax_i. */
export function dequantize(
  tensors: ReadonlyMap<string, Tensor>,
  name: string,
): { values: Float32Array; codes: Uint8Array; shape: number[] } {
  const part = (suffix: string) => {
    const tensor = tensors.get(`${name}${suffix}`);
    if (tensor === undefined) throw new Error(`${name}${suffix} is missing`);
    return tensor;
  };
  const state = JSON.parse(part('.quant_state.bitsandbytes__nf4').bytes.toString()) as {
    blocksize: number;
    shape: number[];
    nested_offset?: number;
  };
  const codebook = floatsOf(part('.quant_map'));
  const packed = part('').bytes;
  let absmax: Float32Array;
  if (state.nested_offset === undefined) absmax = floatsOf(part('.absmax'));
  else {
    const map = floatsOf(part('.nested_quant_map'));
    const nested = floatsOf(part('.nested_absmax'));
    const offset = Math.fround(state.nested_offset);
    absmax = Float32Array.from(part('.absmax').bytes, (q, i) => Math.fround(map[q]! * nested[i >> 8]!) + offset);
  }
  const count = state.shape.reduce((product, size) => product * size, 1);
  const codes = Uint8Array.from({ length: count }, (_, i) =>
    i % 2 === 0 ? packed[i >> 1]! >> 4 : packed[i >> 1]! & 15,
  );
  const values = Float32Array.from(codes, (code, i) => codebook[code]! * absmax[Math.floor(i / state.blocksize)]!);
  return { values, codes, shape: state.shape };
}
