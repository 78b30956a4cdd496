import { runService } from '@medmesh/service';
import { configSchema } from './config.ts';
import { startLifecycle } from './service.ts';

await runService({
  name: 'lifecycle',
  configSchema,
  argv: process.argv.slice(2),
  env: process.env,
  start: startLifecycle,
});
