import { call } from './call.ts';
import { native } from './native.ts';
import type {
  ExportedGguf,
  ExportGgufOptions,
  MergeOptions,
  ModelInfo,
  NewTensor,
  Progress,
  QuantizeOptions,
  SafetensorsInfo,
  SafetensorsWriter,
  StoredTensor,
  TensorShape,
  VerifiedGguf,
  VerifyGgufOptions,
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
    native.quantizeModel(
      o.modelDir,
      o.outDir,
      o.doubleQuant ?? true,
      o.skipModules ?? [],
      o.replace ?? false,
      listener(o.onProgress),
      cancel,
    ),
  );

/**
 * Writes the base with the adapter added, as a plain model folder. An NF4 base is dequantized first; `base` and the files'
 * metadata say which it was.
 */
export const mergeAdapter = (o: MergeOptions): Promise<{ weightBytes: number; base: 'stored' | 'nf4_dequantized' }> =>
  call(o.signal, (cancel) =>
    native.mergeAdapter(o.modelDir, o.adapterDir, o.outDir, o.replace ?? false, listener(o.onProgress), cancel),
  );

/**
 * Writes a model, or one with an adapter added, as one GGUF file that llama.cpp reads, and measures how far it is from its source.
 * `outPath` appears complete or not at all. What llama.cpp cannot express is refused as `unsupported`, with the setting's name.
 */
export const exportGguf = (o: ExportGgufOptions): Promise<ExportedGguf> =>
  call(o.signal, (cancel) =>
    native.exportGguf(
      o.modelDir,
      o.adapterDir ?? null,
      o.outPath,
      o.type,
      o.name ?? '',
      o.replace ?? false,
      listener(o.onProgress),
      cancel,
    ),
  );

/** Reads a GGUF file back: how far it is from what it was made of, now and as it was recorded, and how it scores given sequences. */
export async function verifyGguf(o: VerifyGgufOptions): Promise<VerifiedGguf> {
  const { recorded, ...rest } = await call(o.signal, (cancel) =>
    native.verifyGguf(o.modelDir, o.adapterDir ?? null, o.path, o.sequences, cancel),
  );
  return { recorded: recorded ?? undefined, ...rest };
}

/** Writes a small file atomically. */
export const writeSafetensors = (
  path: string,
  tensors: NewTensor[],
  metadata: Record<string, string> = {},
): Promise<void> => call(undefined, () => native.writeSafetensors(path, tensors, metadata));

/** At most so many bytes are copied to the engine at once. */
const pieceBytes = 16 * 2 ** 20;

/** Starts a file that may be larger than memory: its tensors are announced, then their bytes arrive in pieces. */
export async function openSafetensors(
  path: string,
  tensors: TensorShape[],
  metadata: Record<string, string> = {},
): Promise<SafetensorsWriter> {
  const handle = await call(undefined, () => native.openSafetensors(path, tensors, metadata));
  return {
    async append(name, bytes) {
      for (let at = 0; at < bytes.length; at += pieceBytes)
        await call(undefined, () => native.appendTensor(handle, name, bytes.subarray(at, at + pieceBytes)));
    },
    finish: () => call(undefined, () => native.finishSafetensors(handle)),
    close: () => call(undefined, () => native.close(handle)),
  };
}

/** Reads a small file whole: shards, adapters. */
export async function readSafetensors(path: string): Promise<Map<string, StoredTensor>> {
  const tensors = await call(undefined, () => native.readSafetensors(path));
  return new Map(tensors.map(({ name, ...tensor }) => [name, tensor]));
}
