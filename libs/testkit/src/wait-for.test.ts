import { createServer } from 'node:net';
import { expect, test } from 'vitest';
import { freePorts } from './free-port.ts';
import { waitFor } from './wait-for.ts';

test('waiting gives the first truthy answer, taking errors as not yet', async () => {
  let calls = 0;
  const value = await waitFor(
    () => {
      calls += 1;
      if (calls === 1) throw new Error('early');
      return calls === 3 ? 'ready' : null;
    },
    { intervalMs: 1 },
  );
  expect([value, calls]).toEqual(['ready', 3]);
});

test('waiting in vain names what was waited for and the last error', async () => {
  const waiting = waitFor(() => Promise.reject(new Error('refused')), {
    what: 'the port',
    timeoutMs: 20,
    intervalMs: 5,
  });
  await expect(waiting).rejects.toThrow('waited 20 ms for the port; last error: refused');
});

test('free ports are distinct and can be bound', async () => {
  const ports = await freePorts(5);
  expect(new Set(ports).size).toBe(5);
  for (const port of ports) {
    const server = createServer().listen(port, '127.0.0.1');
    await new Promise((resolve) => server.once('listening', resolve));
    server.close();
  }
});
