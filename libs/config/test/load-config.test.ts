import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { z } from 'zod';
import {
  ConfigError,
  commonConfig,
  configVariables,
  describeConfig,
  type Environment,
  loadConfig,
} from '../src/index.ts';

const Common = z.object(commonConfig);
const enough = { OBJECT_STORE_URL: 'file:///var/lib/medmesh' };

function faultsOf(env: Environment, schema: z.ZodObject = Common): ConfigError {
  try {
    loadConfig(schema, env);
  } catch (e) {
    if (e instanceof ConfigError) return e;
    throw e;
  }
  throw new Error('the configuration was accepted');
}

let dir: string;
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'medmesh-config-'));
});
afterAll(() => rmSync(dir, { recursive: true }));

describe('loadConfig', () => {
  test('defaults fill what the environment leaves out, numbers are numbers, and the result is frozen', () => {
    const config = loadConfig(Common, { ...enough, GRPC_PORT: '7401', PATH: '/bin' });
    expect(config).toMatchObject({ LISTEN_HOST: '127.0.0.1', GRPC_PORT: 7401, METRICS_PORT: 0, LOG_LEVEL: 'info' });
    expect(config).not.toHaveProperty('PATH');
    expect(() => Object.assign(config, { GRPC_PORT: 1 })).toThrow(TypeError);
  });

  test('every fault is listed at once with name, what was seen and what is allowed', () => {
    const error = faultsOf({ GRPC_PORT: '70000', LOG_LEVEL: 'loud', SHUTDOWN_GRACE_MS: 'soon' });
    expect(error.faults.map((f) => f.name).sort()).toEqual([
      'GRPC_PORT',
      'LOG_LEVEL',
      'OBJECT_STORE_URL',
      'SHUTDOWN_GRACE_MS',
    ]);
    expect(error.message).toContain('GRPC_PORT: saw "70000"; expected an integer from 0 to 65535');
    expect(error.message).toContain('LOG_LEVEL: saw "loud"; expected one of trace, debug, info');
    expect(error.message).toContain('OBJECT_STORE_URL: saw nothing');
  });

  test('an empty variable counts as absent', () => {
    expect(loadConfig(Common, { ...enough, GRPC_PORT: '', S3_SECRET_KEY: '' })).toMatchObject({ GRPC_PORT: 0 });
    expect(faultsOf({ OBJECT_STORE_URL: '' }).message).toContain('OBJECT_STORE_URL: saw nothing');
  });

  test.each(['http://bucket', 's3:bucket', 'file://', 's3://Bucket Name', '/var/lib'])(
    'the object store URL %s is refused',
    (url) => {
      expect(faultsOf({ OBJECT_STORE_URL: url }).faults.map((f) => f.name)).toEqual(['OBJECT_STORE_URL']);
    },
  );

  test('the value of a secret is never shown, nor the password in a URL', () => {
    const schema = z.object({
      API_TOKEN: z.string().max(3),
      A_KEY: z.string().max(3),
      MY_SECRET: z.string().max(3),
      NATS_URL: z.string().max(3),
    });
    const { message } = faultsOf(
      {
        API_TOKEN: 'hunter2a',
        A_KEY: 'hunter2b',
        MY_SECRET: 'hunter2c',
        NATS_URL: 'nats://u:hunter2d@a:4222,nats://u:hunter2e@b:4222',
      },
      schema,
    );
    expect(message).not.toContain('hunter2');
    expect(message).toContain('nats://***@a:4222,nats://***@b:4222');
  });
});

describe('X_FILE', () => {
  const write = (name: string, text: string) => {
    const path = join(dir, name);
    writeFileSync(path, text);
    return path;
  };

  test('holds the value of X without its last newline', () => {
    const path = write('secret', 'line one\nline two\n');
    expect(loadConfig(Common, { ...enough, S3_SECRET_KEY_FILE: path }).S3_SECRET_KEY).toBe('line one\nline two');
  });

  test('together with X is a fault, because one of the two would be ignored', () => {
    const { message } = faultsOf({ ...enough, S3_SECRET_KEY: 'a', S3_SECRET_KEY_FILE: write('both', 'b') });
    expect(message).toContain('saw both S3_SECRET_KEY and S3_SECRET_KEY_FILE; expected only one');
  });

  test('that cannot be read, or is far too large, is a fault naming the path', () => {
    expect(faultsOf({ ...enough, S3_SECRET_KEY_FILE: '/nowhere/at/all' }).message).toContain(
      '/nowhere/at/all (ENOENT)',
    );
    expect(faultsOf({ ...enough, S3_SECRET_KEY_FILE: write('big', 'x'.repeat(70_000)) }).message).toContain(
      'at most 65536 bytes',
    );
  });

  test('is a variable of its own when the schema says so', () => {
    const schema = z.object({ PORT: z.coerce.number().default(1), PORT_FILE: z.string().optional() });
    expect(loadConfig(schema, { PORT_FILE: '/tmp/ports' })).toEqual({ PORT: 1, PORT_FILE: '/tmp/ports' });
  });
});

describe('describeConfig', () => {
  test('lists every variable with its need, range and meaning', () => {
    const text = describeConfig(Common);
    expect(text).toMatch(/^GRPC_PORT +default 0 +an integer from 0 to 65535 +port of the gRPC server/m);
    expect(text).toMatch(/^OBJECT_STORE_URL +required/m);
    expect(text).toMatch(/^S3_SECRET_KEY \(or S3_SECRET_KEY_FILE\) +optional/m);
    expect(text.split('\n')).toHaveLength(Object.keys(commonConfig).length);
  });

  test('knows which variables are secret', () => {
    expect(
      configVariables(Common)
        .filter((v) => v.secret)
        .map((v) => v.name),
    ).toEqual(['S3_ACCESS_KEY', 'S3_SECRET_KEY']);
  });
});
