import { call } from './call.ts';
import { native } from './native.ts';
import type {
  MergeOptions,
  ModelInfo,
  NewTensor,
  Progress,
  QuantizeOptions,
  SafetensorsInfo,
  StoredTensor,
} from './types.ts';

/** A listener whose exception surfaces as any other in a callback, without ending the work it listens to. */
function listener(onProgress: ((progress: Progress) => void) | undefined): ((progress: Progress) => void) | null {
  if (onProgress === undefined) return null;
  return (progress) => {
    try {
      onProgress(progress);
    } catch (error) {
      queueMicrotask(() => {
        throw error;
      });
    }
  };
}

/** Names, types and places of a file's tensors. Strict: a file that breaks the format in any way is refused as `corrupt`. */
export const inspectSafetensors = (path: string): Promise<SafetensorsInfo> =>
  call(undefined, () => native.inspectSafetensors(path));

/** What a Hugging Face folder holds; fails unless config.json and the tensors fit each other. */
export const inspectModel = (dir: string): Promise<ModelInfo> => call(undefined, () => native.inspectModel(dir));

/** Writes an NF4 copy of a 16- or 32-bit model folder. `outDir` appears complete or not at all. */
export const quantizeModel = (o: QuantizeOptions): Promise<{ weightBytes: number; tensors: number }> =>
  call(o.signal, (cancel) =>
    native.quantizeModel(o.modelDir, o.outDir, o.doubleQuant ?? true, listener(o.onProgress), cancel),
  );

/**
 * Writes the base with the adapter added, as a plain model folder. An NF4 base is dequantized first; `base` and the files'
 * metadata say which it was.
 */
export const mergeAdapter = (o: MergeOptions): Promise<{ weightBytes: number; base: 'stored' | 'nf4_dequantized' }> =>
  call(o.signal, (cancel) => native.mergeAdapter(o.modelDir, o.adapterDir, o.outDir, listener(o.onProgress), cancel));

/** Writes a small file atomically. */
export const writeSafetensors = (
  path: string,
  tensors: NewTensor[],
  metadata: Record<string, string> = {},
): Promise<void> => call(undefined, () => native.writeSafetensors(path, tensors, metadata));

/** Reads a small file whole: shards, adapters. */
export async function readSafetensors(path: string): Promise<Map<string, StoredTensor>> {
  const tensors = await call(undefined, () => native.readSafetensors(path));
  return new Map(tensors.map(({ name, ...tensor }) => [name, tensor]));
}
