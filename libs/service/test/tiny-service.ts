// A service for tests. Its long-running verb `shout` answers with its request in capitals; SLOW_MS makes each one take that long.
/* oxlint-disable node/no-process-env -- stands for a main.ts */
import { commonConfig } from '@medmesh/config';
import { Failure } from '@medmesh/errors';
import { longrunning, protobuf } from '@medmesh/proto';
import { bind } from '@medmesh/rpc';
import { activeTraceparent } from '@medmesh/telemetry';
import { z } from 'zod';
import { createOperations, runService } from '../src/index.ts';

const configSchema = z.object({
  ...commonConfig,
  SLOW_MS: z.coerce.number().int().min(0).default(0).describe('how long a shout takes'),
  WORKS: z.stringbool().default(true).describe('whether this process does shouts or only starts them'),
  MISBEHAVE: z.enum(['', 'hang', 'reject', 'throw-later', 'end']).default('').describe('what to do wrong'),
});

await runService({
  name: 'tiny',
  configSchema,
  argv: process.argv.slice(2),
  env: process.env,
  async start(context) {
    const { config, log } = context;
    const operations = await createOperations(context);
    const worker = config.WORKS
      ? await operations.run(
          'shout',
          async (run) => {
            const text = Buffer.from(run.request).toString();
            log.info({ operation: run.name, traceparent: activeTraceparent() }, `begins to shout ${text}`);
            await new Promise<void>((resolve, reject) => {
              setTimeout(resolve, config.SLOW_MS);
              run.signal.addEventListener('abort', () => reject(run.signal.reason as Error));
            });
            if (text === 'bad')
              throw new Failure('invalid_argument', 'that cannot be shouted', { reason: 'NOT_SHOUTABLE' });
            return { typeUrl: 'type.googleapis.com/google.protobuf.Any', bytes: Buffer.from(text.toUpperCase()) };
          },
          { ackWaitMs: 1_000 },
        )
      : undefined;
    if (config.MISBEHAVE === 'throw-later') {
      setTimeout(() => {
        throw new TypeError('nobody catches this');
      }, 200);
    }
    return {
      services: [
        bind(longrunning.OperationsDefinition, {
          getOperation: (request) => operations.get(request.name),
          listOperations: (request) => operations.list(request),
          waitOperation: (request, call) => {
            log.info(`begins to wait for ${request.name}`);
            return operations.wait(request.name, request.timeout, call.signal);
          },
          // The test's way to start a shout: its name is what is shouted.
          cancelOperation: async (request) => {
            const { name } = await operations.start({
              kind: 'shout',
              project: 'p',
              request: { typeUrl: 't', bytes: Buffer.from(request.name) },
            });
            log.info({ operation: name, traceparent: activeTraceparent() }, `started ${name}`);
            return protobuf.Empty.fromPartial({});
          },
        }),
      ],
      async stop() {
        if (config.MISBEHAVE === 'hang') await new Promise(() => undefined);
        if (config.MISBEHAVE === 'reject') throw new Failure('internal', 'cannot stop');
        await worker?.stop();
        log.info('the worker has stopped');
      },
      async close() {
        log.info('closed the service');
      },
      ...(config.MISBEHAVE === 'end' ? { done: new Promise<number>((resolve) => setTimeout(resolve, 100, 42)) } : {}),
    };
  },
});
