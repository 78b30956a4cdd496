// A process for tests: takes work and says what it does. Arguments: NATS URL, subject, durable, ackWaitMs, maxDeliver, and how long each piece takes in ms.
import { createLogger } from '@medmesh/log';
import { connectNats, consumeWork } from '../src/index.ts';

const [url, subject, durable, ackWaitMs, maxDeliver, workMs] = process.argv.slice(2) as [
  string,
  string,
  string,
  string,
  string,
  string,
];
const log = createLogger({ service: 'worker', level: 'warn' });
const nc = await connectNats({ url, name: 'worker', log });
const consumer = await consumeWork({
  nc,
  subject,
  durable,
  concurrency: 1,
  ackWaitMs: Number(ackWaitMs),
  maxDeliver: Number(maxDeliver),
  backoffMs: 50,
  log,
  async handler(message) {
    const text = Buffer.from(message.data).toString();
    process.stdout.write(`begin ${text} delivery ${message.deliveryCount}\n`);
    await new Promise((resolve) => setTimeout(resolve, Number(workMs)));
    if (text === 'poison') process.kill(process.pid, 'SIGKILL');
    process.stdout.write(`end ${text}\n`);
  },
});
process.on('SIGTERM', () => {
  void consumer.stop().then(() => nc.close());
});
process.stdout.write('taking work\n');
