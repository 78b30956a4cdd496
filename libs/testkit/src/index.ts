export { freePort, freePorts } from './free-port.ts';
export { findProgram, repositoryRoot, sharedInputs, sharedInputsMissing } from './repository.ts';
export { type SeededRandom, seededRandom } from './seeded-random.ts';
export { type Exit, type RunningProcess, runProcess, type SpawnOptions, spawnProcess } from './spawn-process.ts';
export { type NatsOptions, type NatsServer, startNats } from './start-nats.ts';
export {
  type Attributes,
  type AttributeValue,
  type CollectedSpan,
  type OtlpCollector,
  type SpanKind,
  startOtlp,
} from './start-otlp.ts';
export { type S3Server, s3Missing, startS3 } from './start-s3.ts';
export { tempDir } from './temp-dir.ts';
export { type WaitOptions, waitFor } from './wait-for.ts';
export { type TensorSource, type WrittenDtype, writeSafetensors } from './write-safetensors.ts';
export { type TinyModel, type TinyModelOptions, writeTinyModel } from './write-tiny-model.ts';
