// Asks a process on this machine for its health over gRPC, for container runtimes without a probe of their own:
//   node libs/rpc/src/health-probe.ts [name [port]]     name: live, ready or a service's; without one, whether it takes requests
// Exits with 0 if it is serving, else with 1 and a line that says why. No TLS: behind TLS, ask /healthz of the metrics port.
import { Client, credentials } from '@grpc/grpc-js';

const timeoutMs = 5_000;
const serving = 1;

// grpc.health.v1, by hand: the whole of nice-grpc would take three times as long to load as the call does.
const encode = (service: string): Buffer => {
  const name = Buffer.from(service);
  return name.length === 0 ? name : Buffer.concat([Buffer.from([0x0a, name.length]), name]);
};
const decode = (bytes: Buffer): number => (bytes[0] === 0x08 ? (bytes[1] ?? 0) : 0);

const [service = '', port = '7400'] = process.argv.slice(2);
const address = `127.0.0.1:${port}`;
const client = new Client(address, credentials.createInsecure());
client.makeUnaryRequest(
  '/grpc.health.v1.Health/Check',
  encode,
  decode,
  service,
  { deadline: Date.now() + timeoutMs },
  (error, status) => {
    client.close();
    if (error === null && status === serving) return;
    process.stderr.write(
      `${address} ${service}: ${error === null ? 'not serving' : (error?.details ?? 'no answer')}\n`,
    );
    process.exitCode = 1;
  },
);
