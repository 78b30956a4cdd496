import { boundAllocator } from '@medmesh/engine';
import { runService } from '@medmesh/service';
import { configSchema } from './config.ts';
import { boundHeapGrowth } from './heap-growth.ts';
import { startInference } from './service.ts';

boundHeapGrowth();
boundAllocator();
await runService({
  name: 'inference',
  configSchema,
  argv: process.argv.slice(2),
  env: process.env,
  start: startInference,
});
