import { runService } from '@medmesh/service';
import { configSchema } from './config.ts';
import { startFormatter } from './service.ts';

await runService({
  name: 'formatter',
  configSchema,
  argv: process.argv.slice(2),
  env: process.env,
  start: startFormatter,
});
