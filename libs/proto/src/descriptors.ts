import { readFileSync } from 'node:fs';

/** Every contract and what it imports, as an encoded google.protobuf.FileDescriptorSet: what server reflection answers from. */
export const readDescriptorSet = (): Uint8Array => readFileSync(new URL('./gen/descriptors.binpb', import.meta.url));
