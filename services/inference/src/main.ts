import { runService } from '@medmesh/service';
import { configSchema } from './config.ts';
import { startInference } from './service.ts';

await runService({
  name: 'inference',
  configSchema,
  argv: process.argv.slice(2),
  env: process.env,
  start: startInference,
});
