import { runService } from '@medmesh/service';
import { configSchema } from './config.ts';
import { startTrainer } from './service.ts';

await runService({ name: 'trainer', configSchema, argv: process.argv.slice(2), env: process.env, start: startTrainer });
