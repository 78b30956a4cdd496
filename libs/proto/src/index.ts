export { readDescriptorSet } from './descriptors.ts';
export * as longrunning from './gen/index.google.longrunning.ts';
export * as protobuf from './gen/index.google.protobuf.ts';
export * as rpc from './gen/index.google.rpc.ts';
export * as dataset from './gen/index.medmesh.dataset.v1.ts';
export * as model from './gen/index.medmesh.model.v1.ts';
export * as trainer from './gen/index.medmesh.trainer.v1.ts';
