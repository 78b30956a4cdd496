import { runService } from '@medmesh/service';
import { configSchema } from './config.ts';
import { startGateway } from './service.ts';

await runService({
  name: 'gateway',
  configSchema,
  argv: process.argv.slice(2),
  env: process.env,
  uses: { nats: false, store: false },
  start: startGateway,
});
