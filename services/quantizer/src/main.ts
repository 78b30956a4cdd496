import { runService } from '@medmesh/service';
import { configSchema } from './config.ts';
import { startQuantizer } from './service.ts';

await runService({
  name: 'quantizer',
  configSchema,
  argv: process.argv.slice(2),
  env: process.env,
  start: startQuantizer,
});
