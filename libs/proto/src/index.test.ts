import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fromBinary } from '@bufbuild/protobuf';
import { BinaryWriter } from '@bufbuild/protobuf/wire';
import { FileDescriptorSetSchema } from '@bufbuild/protobuf/wkt';
import { expect, test } from 'vitest';
import { dataset, inference, longrunning, readDescriptorSet } from './index.ts';

const protoFolder = join(import.meta.dirname, '../../../proto');

test('the descriptor set holds every service of proto/ and what it imports', () => {
  const { file } = fromBinary(FileDescriptorSetSchema, readDescriptorSet());
  const described = file.flatMap((each) => each.service.map((service) => `${each.package}.${service.name}`));
  const written = readdirSync(protoFolder, { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.proto'))
    .flatMap((name) => {
      const text = readFileSync(join(protoFolder, name), 'utf8');
      const packageName = /^package ([\w.]+);/m.exec(text)?.[1];
      return [...text.matchAll(/^service (\w+)/gm)].map((service) => `${packageName}.${service[1]}`);
    });
  expect(written.length).toBeGreaterThan(5);
  expect(described).toEqual(expect.arrayContaining([...written, 'google.longrunning.Operations']));
  const names = new Set(file.map((each) => each.name));
  expect(file.flatMap((each) => each.dependency).filter((name) => !names.has(name))).toEqual([]);
});

test('a message survives the wire: dates, a chosen branch of a oneof, enums', () => {
  const sent = dataset.DatasetVersion.fromPartial({
    name: 'datasets/d/versions/1',
    createTime: new Date('2026-01-02T03:04:05.678Z'),
  });
  expect(dataset.DatasetVersion.decode(dataset.DatasetVersion.encode(sent).finish())).toEqual(sent);

  const request = inference.GenerateRequest.fromPartial({
    input: { $case: 'text', value: 'hello' },
    priority: inference.Priority.BATCH,
  });
  const received = inference.GenerateRequest.decode(inference.GenerateRequest.encode(request).finish());
  expect(received.input).toEqual({ $case: 'text', value: 'hello' });
  expect(inference.GenerateRequest.toJSON(received)).toEqual({ text: 'hello', priority: 'PRIORITY_BATCH' });
});

test('an enum value from a newer peer is kept as unrecognized instead of failing the message', () => {
  const fromTheFuture = inference.GenerateRequest.decode(new BinaryWriter().tag(11, 0).int32(99).finish());
  expect(fromTheFuture.priority).toBe(99);
  expect(inference.priorityToJSON(fromTheFuture.priority)).toBe('UNRECOGNIZED');
});

test('a 64-bit integer that a number cannot hold exactly is refused, never rounded', () => {
  const rowCount = (value: bigint) =>
    dataset.DataStats.decode(new BinaryWriter().tag(1, 0).int64(value).finish()).rowCount;
  expect(rowCount(2n ** 53n - 1n)).toBe(Number.MAX_SAFE_INTEGER);
  expect(() => rowCount(2n ** 53n)).toThrow('Value is larger than Number.MAX_SAFE_INTEGER');
});

test('an operation carries its outcome as a discriminated union', () => {
  const done = longrunning.Operation.fromPartial({
    name: 'operations/1',
    done: true,
    result: { $case: 'error', value: { code: 3, message: 'bad rank' } },
  });
  const { result } = longrunning.Operation.decode(longrunning.Operation.encode(done).finish());
  expect(result?.$case === 'error' && result.value.message).toBe('bad rank');
});
