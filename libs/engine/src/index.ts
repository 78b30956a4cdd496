export { createVocabulary, maxAutomatonDepth } from './constraint.ts';
export { boundAllocator, engineVersion, listDevices, loadModel, planTraining, usedDeviceMemory } from './engine.ts';
export { EngineError, type EngineErrorCode } from './errors.ts';
export {
  exportGguf,
  inspectModel,
  inspectSafetensors,
  mergeAdapter,
  openSafetensors,
  quantizeModel,
  readSafetensors,
  verifyGguf,
  writeSafetensors,
} from './files.ts';
export type * from './types.ts';
export { Utf8Stream } from './utf8-stream.ts';
