// A process for tests: claims a request, says so, and never answers it. Arguments: NATS URL, request id, life of the claim in ms.
import { connect } from '@nats-io/transport-node';
import { idempotent, openRecords } from '../src/index.ts';

const [url, requestId, claimMs] = process.argv.slice(2) as [string, string, string];
const records = await openRecords(await connect({ servers: url }));
await idempotent(
  records,
  {
    method: 'test.v1.Service/Create',
    requestId,
    body: Buffer.from('body'),
    claimMs: Number(claimMs),
    resCodec: { encode: (value: string) => Buffer.from(value), decode: (bytes) => Buffer.from(bytes).toString() },
  },
  () => {
    process.stdout.write('claimed\n');
    return new Promise<string>(() => setInterval(() => undefined, 1000));
  },
);
