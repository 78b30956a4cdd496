import { writeFile } from 'node:fs/promises';
import { baseConfig } from './base-recipe.ts';
import { createRandom, type Random } from './random.ts';

/** A tensor to be written: its values in row-major order. */
type Tensor = { readonly name: string; readonly shape: readonly number[]; readonly values: Float32Array };

const elementCount = (shape: readonly number[]): number => shape.reduce((product, size) => product * size, 1);

const constant = (name: string, shape: readonly number[], value: number): Tensor => ({
  name,
  shape,
  values: new Float32Array(elementCount(shape)).fill(value),
});

function normal(random: Random, name: string, shape: readonly number[]): Tensor {
  const values = Float32Array.from(
    { length: elementCount(shape) },
    () => random.normal() * baseConfig.initializer_range,
  );
  return { name, shape, values };
}

/** Every tensor of the base before training: normal weights, unit norms, zero biases. */
function initialTensors(seed: number): Tensor[] {
  const random = createRandom(seed);
  const { hidden_size: hidden, intermediate_size: inner, num_attention_heads: heads } = baseConfig;
  const keyValueSize = (hidden / heads) * baseConfig.num_key_value_heads;
  const layers = Array.from({ length: baseConfig.num_hidden_layers }, (_, layer) => {
    const prefix = `model.layers.${layer}`;
    const attention = (['q', 'k', 'v'] as const).flatMap((part) => {
      const outputSize = part === 'q' ? hidden : keyValueSize;
      return [
        normal(random, `${prefix}.self_attn.${part}_proj.weight`, [outputSize, hidden]),
        constant(`${prefix}.self_attn.${part}_proj.bias`, [outputSize], 0),
      ];
    });
    return [
      constant(`${prefix}.input_layernorm.weight`, [hidden], 1),
      ...attention,
      normal(random, `${prefix}.self_attn.o_proj.weight`, [hidden, hidden]),
      constant(`${prefix}.post_attention_layernorm.weight`, [hidden], 1),
      normal(random, `${prefix}.mlp.gate_proj.weight`, [inner, hidden]),
      normal(random, `${prefix}.mlp.up_proj.weight`, [inner, hidden]),
      normal(random, `${prefix}.mlp.down_proj.weight`, [hidden, inner]),
    ];
  });
  return [
    normal(random, 'model.embed_tokens.weight', [baseConfig.vocab_size, hidden]),
    ...layers.flat(),
    constant('model.norm.weight', [hidden], 1),
  ];
}

/** Little-endian bf16, rounded to nearest, ties to even. The values are finite. */
function toBf16(values: Float32Array): Uint8Array {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const bytes = new DataView(new ArrayBuffer(values.length * 2));
  bits.forEach((word, index) => {
    const half = (word + 0x7fff + ((word >>> 16) & 1)) >>> 16;
    bytes.setUint16(index * 2, half & 0xffff, true);
  });
  return new Uint8Array(bytes.buffer);
}

/**
 * Writes the untrained base as safetensors in bf16, the type in which the trainer then saves it. Written here because
 * the engine writes its small files in other types only; its reader checks what this made.
 */
export async function writeInitialWeights(path: string, seed: number): Promise<void> {
  let offset = 0;
  const header: Record<string, unknown> = { __metadata__: { format: 'pt' } };
  const parts: Uint8Array[] = [];
  for (const { name, shape, values } of initialTensors(seed)) {
    const bytes = toBf16(values);
    header[name] = { dtype: 'BF16', shape, data_offsets: [offset, offset + bytes.length] };
    offset += bytes.length;
    parts.push(bytes);
  }
  const text = JSON.stringify(header);
  const padded = Buffer.from(text.padEnd(Math.ceil(text.length / 8) * 8));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(padded.length));
  await writeFile(path, Buffer.concat([length, padded, ...parts]));
}
