import { Failure } from '@medmesh/errors';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { keyOf, nameOf } from './keys.ts';
import { checkEtag, checkResourceId, etagOf, formatName, parseName } from './names.ts';
import { checkPageSize, makePageToken, readPageToken } from './page-token.ts';

const failureOf = (act: () => unknown): Failure => {
  try {
    act();
  } catch (error) {
    if (error instanceof Failure) return error;
    throw error;
  }
  throw new Error('did not fail');
};

test('a name with dots becomes a key whose tokens are the path segments', () => {
  expect(keyOf('projects/p/models/qwen2.5-7b')).toBe('projects.p.models.qwen2=2E5-7b');
  expect(nameOf('projects.p.models.qwen2=2E5-7b')).toBe('projects/p/models/qwen2.5-7b');
});

test('a parent has the same key with and without a slash at the end', () => {
  expect(keyOf('projects/p/models/')).toBe(keyOf('projects/p/models'));
});

test('every name comes back from its key, and the key is one the broker takes', () => {
  const segment = fc.string({ minLength: 1, unit: 'grapheme' }).filter((text) => !text.includes('/'));
  fc.assert(
    fc.property(fc.array(segment, { minLength: 1, maxLength: 5 }), (segments) => {
      const name = segments.join('/');
      expect(keyOf(name)).toMatch(/^[-=\w]+(\.[-=\w]+)*$/);
      expect(nameOf(keyOf(name))).toBe(name);
    }),
  );
});

test('a name with an empty segment has no key', () => {
  for (const name of ['', '/', 'projects//', 'projects//models', '/projects']) {
    expect(failureOf(() => keyOf(name))).toMatchObject({ code: 'invalid_argument' });
  }
});

test('a resource name is split by its pattern and put together again', () => {
  const parts = parseName('projects/{project}/models/{model}', 'projects/st-anna/models/qwen2.5-7b');
  expect(parts).toEqual({ project: 'st-anna', model: 'qwen2.5-7b' });
  expect(formatName('projects/{project}/models/{model}', parts)).toBe('projects/st-anna/models/qwen2.5-7b');
});

test('a name that does not fit its pattern is refused with the field and the pattern', () => {
  for (const name of [
    '',
    'projects/p',
    'projects/p/models/',
    'projects/p/adapters/a',
    'projects/p/models/../x',
    'projects/p/models/a b',
    'projects/p/models/a\0',
    `projects/p/models/${'a'.repeat(129)}`,
  ]) {
    const failure = failureOf(() => parseName('projects/{project}/models/{model}', name, 'job.model'));
    expect(failure).toMatchObject({ code: 'invalid_argument', reason: 'FIELD_INVALID' });
    expect(failure.fields?.[0]?.field).toBe('job.model');
    expect(failure.message).toContain('projects/{project}/models/{model}');
    expect(failure.message).not.toContain('\0');
  }
});

test('a part that would not parse back is refused when a name is made', () => {
  expect(failureOf(() => formatName('projects/{project}', { project: 'a/b' }))).toMatchObject({
    code: 'invalid_argument',
  });
  expect(failureOf(() => formatName('projects/{project}', { project: '..' }))).toMatchObject({
    code: 'invalid_argument',
  });
});

test('an id begins with a lowercase letter and holds letters, digits and hyphens; dots only where allowed', () => {
  for (const id of ['a', 'qwen-7b', `a${'b'.repeat(62)}`]) expect(() => checkResourceId(id, 'job_id')).not.toThrow();
  for (const id of ['', 'A', '1a', 'a-', 'a.b', 'a/b', `a${'b'.repeat(63)}`, 'ä', 'a\n']) {
    expect(failureOf(() => checkResourceId(id, 'job_id')).fields?.[0]?.field).toBe('job_id');
  }
  expect(() => checkResourceId('qwen2.5-7b', 'model_id', { dots: true })).not.toThrow();
  expect(failureOf(() => checkResourceId('a..b', 'model_id', { dots: true })).code).toBe('invalid_argument');
});

test('an etag matches its own revision only, and an empty one asks for no check', () => {
  expect(() => checkEtag(etagOf(7), 7)).not.toThrow();
  expect(() => checkEtag('', 7)).not.toThrow();
  expect(failureOf(() => checkEtag(etagOf(6), 7))).toMatchObject({ code: 'aborted', reason: 'ETAG_MISMATCH' });
});

test('a page token is refused by every other list and when it was not given out', () => {
  const list = { bucket: 'models', prefix: 'projects.p.models', scope: 'state=READY' };
  const token = makePageToken(list, 'projects.p.models.m');
  expect(readPageToken(list, token)).toBe('projects.p.models.m');
  const refused = [
    () => readPageToken({ ...list, bucket: 'jobs' }, token),
    () => readPageToken({ ...list, prefix: 'projects.q.models' }, token),
    () => readPageToken({ ...list, scope: '' }, token),
    () => readPageToken(list, `${token}x`),
    () => readPageToken(list, 'not a token'),
    () => readPageToken(list, Buffer.from('[1,2,3]').toString('base64url')),
  ];
  for (const read of refused)
    expect(failureOf(read)).toMatchObject({ code: 'invalid_argument', reason: 'PAGE_TOKEN_MISMATCH' });
});

test('a page size of 0 is the default, a large one is capped and a negative one refused', () => {
  expect(checkPageSize(0)).toBe(50);
  expect(checkPageSize(7)).toBe(7);
  expect(checkPageSize(5000)).toBe(1000);
  expect(failureOf(() => checkPageSize(-1)).fields?.[0]?.field).toBe('page_size');
});
