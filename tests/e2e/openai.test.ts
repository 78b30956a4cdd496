import { createHash, randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { connect, type MedmeshClient } from '@medmesh/client';
import { demoBaseDir } from '@medmesh/demo';
import { openInference } from '@medmesh/proto';
import { createClient, openChannel } from '@medmesh/rpc';
import { tempDir, waitFor } from '@medmesh/testkit';
import OpenAI from 'openai';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type MeshFixture, startMeshFixture } from './mesh-fixture.ts';

const adminKey = randomBytes(24).toString('hex');
const wardKey = randomBytes(24).toString('hex');
const digestOf = (key: string) => createHash('sha256').update(key).digest('hex');
const keysFile = join(tempDir(), 'keys.json');
const writeKeys = (ward: string) =>
  writeFileSync(
    keysFile,
    JSON.stringify({
      keys: [
        { tenant: 'operators', sha256: digestOf(adminKey), access: 'all' },
        { tenant: 'ward-3', sha256: digestOf(ward) },
      ],
    }),
  );

const question = 'A young man has pain moving to the right lower belly. Which condition is most likely?';
const messages = [{ role: 'user' as const, content: question }];

let fixture: MeshFixture;
let admin: MedmeshClient;
let openai: OpenAI;
const asWith = (apiKey: string) =>
  new OpenAI({ apiKey, baseURL: `http://${fixture.mesh.record.http}/v1`, maxRetries: 0 });

beforeAll(async () => {
  writeKeys(wardKey);
  fixture = await startMeshFixture({ roots: [demoBaseDir], env: { gateway: { API_KEYS_FILE: keysFile } } });
  admin = connect({ address: fixture.mesh.record.gateway, apiKey: adminKey });
  const base = await admin.models.import({ modelId: 'demo', uri: pathToFileURL(demoBaseDir).href });
  const nf4 = await admin.models.quantize({ sourceModel: base.name, modelId: 'demo-nf4' });
  const upload = await admin.datasets.upload(new URL('../../libs/demo/data/rows.jsonl', import.meta.url).pathname);
  await admin.datasets.ensure('rows');
  const version = await admin.datasets.buildVersion('rows', {
    sources: [{ uri: upload.digest, fileName: upload.fileName }],
    model: nf4.name,
    maxTokens: 512,
  });
  const job = await admin.jobs.create({
    source: { $case: 'baseModel', value: nf4.name },
    trainDatasets: [{ datasetVersion: version.name }],
    schedule: { steps: 2, learningRate: 1e-3 },
    publish: { adapterId: 'ward' },
  });
  await admin.jobs.waitFor(job.name);
  openai = asWith(wardKey);
}, 180_000);
afterAll(async () => {
  admin?.close();
  await fixture?.stop();
});

describe('the official client', () => {
  test('lists bases and adapters and finds one by its id', async () => {
    const ids: string[] = [];
    for await (const model of openai.models.list()) ids.push(model.id);
    expect(ids.toSorted()).toEqual(['demo', 'demo-nf4', 'ward']);
    expect(await openai.models.retrieve('ward')).toMatchObject({ id: 'ward', object: 'model', owned_by: 'medmesh' });
    await expect(openai.models.retrieve('none')).rejects.toMatchObject({ status: 404, code: 'model_not_found' });
  });

  test('gets a chat answer with the thought apart, usage, and what answered', async () => {
    const made = await openai.chat.completions.create({ model: 'ward', messages, temperature: 0, max_tokens: 40 });
    const [choice] = made.choices;
    expect(made.object).toBe('chat.completion');
    expect(choice!.message.role).toBe('assistant');
    expect(choice!.message.content).toBeTruthy();
    expect((choice!.message as { reasoning_content?: string }).reasoning_content).toBeTruthy();
    expect(['stop', 'length']).toContain(choice!.finish_reason);
    const usage = made.usage!;
    expect(usage.total_tokens).toBe(usage.prompt_tokens + usage.completion_tokens);
    expect(usage.completion_tokens_details!.reasoning_tokens).toBeGreaterThan(0);
    expect(made).toMatchObject({
      medmesh: { adapter: 'projects/default/adapters/ward', quantization: 'nf4-double-quant' },
    });
  });

  test('gets the same answer as a stream, with usage at its end when asked', async () => {
    const ask = { model: 'ward', messages, temperature: 0.8, seed: 4, max_tokens: 40 };
    const whole = await openai.chat.completions.create(ask);
    let content = '';
    let reasoning = '';
    let usage: OpenAI.CompletionUsage | null | undefined;
    let finish: string | null = null;
    for await (const chunk of await openai.chat.completions.create({
      ...ask,
      stream: true,
      stream_options: { include_usage: true },
    })) {
      const [choice] = chunk.choices;
      content += choice?.delta.content ?? '';
      reasoning += (choice?.delta as { reasoning_content?: string } | undefined)?.reasoning_content ?? '';
      finish = choice?.finish_reason ?? finish;
      usage = chunk.usage ?? usage;
    }
    expect(content).toBe(whole.choices[0]!.message.content);
    expect(reasoning).toBe((whole.choices[0]!.message as { reasoning_content?: string }).reasoning_content);
    expect(finish).toBe(whole.choices[0]!.finish_reason);
    expect(usage).toEqual(whole.usage);
  });

  test('gets JSON of a schema, parsed by its own helper', async () => {
    const made = await openai.chat.completions.parse({
      model: 'ward',
      messages,
      max_tokens: 80,
      reasoning_effort: 'none',
      response_format: {
        type: 'json_schema',
        json_schema: {
          name: 'triage',
          strict: true,
          schema: {
            type: 'object',
            properties: { urgent: { type: 'boolean' }, ward: { enum: ['A', 'B'] } },
            required: ['urgent', 'ward'],
            additionalProperties: false,
          },
        },
      },
    });
    const value = JSON.parse(made.choices[0]!.message.content!) as { urgent: unknown; ward: unknown };
    expect(value.urgent).toBeTypeOf('boolean');
    expect(['A', 'B']).toContain(value.ward);
    expect(made.choices[0]!.finish_reason).toBe('stop');
  });

  test('gets several choices and log-probabilities of chats and completions', async () => {
    const chat = await openai.chat.completions.create({
      model: 'ward',
      messages,
      n: 2,
      seed: 1,
      max_tokens: 12,
      logprobs: true,
      top_logprobs: 3,
    });
    expect(chat.choices.map(({ index }) => index)).toEqual([0, 1]);
    const [first] = chat.choices[0]!.logprobs!.content!;
    expect(first!.top_logprobs).toHaveLength(3);
    expect(first!.logprob).toBeLessThanOrEqual(0);
    const text = await openai.completions.create({
      model: 'demo-nf4',
      prompt: ['The patient', 'Pain in'],
      temperature: 0,
      max_tokens: 8,
      logprobs: 2,
    });
    expect(text.choices).toHaveLength(2);
    expect(text.choices[0]!.logprobs!.tokens!.join('')).toBe(text.choices[0]!.text);
    let streamed = '';
    for await (const chunk of await openai.completions.create({
      model: 'demo-nf4',
      prompt: 'The patient',
      temperature: 0,
      max_tokens: 8,
      stream: true,
    }))
      streamed += chunk.choices[0]?.text ?? '';
    expect(streamed).toBe(text.choices[0]!.text);
  });

  test('gets embeddings of length 1, as base64 by itself and as numbers when asked, of texts and of tokens', async () => {
    const input = ['The patient has a fever.', 'The patient has a high temperature.', '12 + 30'];
    const packed = await openai.embeddings.create({ model: 'ward', input });
    const plain = await openai.embeddings.create({ model: 'ward', input, encoding_format: 'float' });
    expect(plain.data.map(({ index }) => index)).toEqual([0, 1, 2]);
    expect(plain.usage).toEqual(packed.usage);
    expect(plain.usage.prompt_tokens).toBeGreaterThan(9);
    for (const [i, { embedding }] of plain.data.entries()) {
      expect(embedding.map(Math.fround)).toEqual([...packed.data[i]!.embedding]);
      expect(Math.hypot(...embedding)).toBeCloseTo(1, 5);
    }
    const [fever, temperature, sum] = plain.data.map(({ embedding }) => embedding) as [number[], number[], number[]];
    const cosine = (a: number[], b: number[]) => a.reduce((total, value, i) => total + value * b[i]!, 0);
    expect(cosine(fever, temperature)).toBeGreaterThan(cosine(fever, sum));
    const base = await openai.embeddings.create({ model: 'demo-nf4', input: [[5, 6, 7], [8]] });
    expect(base.usage.total_tokens).toBe(4);
    expect(base.data[0]!.embedding).toHaveLength(fever.length);
    const ask = (more: object) => openai.embeddings.create({ model: 'ward', input: 'x', ...more });
    await expect(ask({ dimensions: 8 })).rejects.toMatchObject({ status: 400, param: 'dimensions' });
    await expect(ask({ input: ['x', ''] })).rejects.toMatchObject({ status: 400, param: 'texts[1]' });
  });

  test('is told in its own errors what is wrong', async () => {
    const ask = (more: object) => openai.chat.completions.create({ model: 'ward', messages, max_tokens: 4, ...more });
    await expect(ask({ model: 'none' })).rejects.toBeInstanceOf(OpenAI.NotFoundError);
    await expect(ask({ temperature: 9 })).rejects.toMatchObject({ status: 400, param: 'sampling.temperature' });
    await expect(ask({ tools: [{ type: 'function', function: { name: 'f' } }] })).rejects.toMatchObject({
      status: 400,
      param: 'tools',
    });
    await expect(ask({ frobnicate: 1 })).rejects.toMatchObject({ status: 400, param: 'frobnicate' });
    await expect(ask({ structured_outputs: { regex: '(a' } })).rejects.toMatchObject({ code: 'constraint_invalid' });
    await expect(ask({ stream: true, temperature: 9 })).rejects.toMatchObject({ status: 400 });
    await expect(ask({ messages: [{ role: 'system', content: 'x' }, ...messages] })).rejects.toMatchObject({
      code: 'template_mismatch',
    });
  });

  test('that goes away ends the work', async () => {
    const stop = new AbortController();
    const stream = await openai.chat.completions.create(
      {
        model: 'ward',
        messages,
        max_tokens: 3000,
        stream: true,
        structured_outputs: { regex: '[a-z ]{2500,2600}' },
        reasoning_effort: 'none',
      } as never,
      { signal: stop.signal },
    );
    for await (const chunk of stream as unknown as AsyncIterable<OpenAI.ChatCompletionChunk>) {
      if (chunk.choices.length > 0) break;
    }
    stop.abort();
    const running = async () => (await admin.raw.inferenceAdmin.getLoad({})).runningRequestCount;
    await waitFor(async () => (await running()) === 0, { timeoutMs: 5_000 });
    expect(await running()).toBe(0);
  });
});

describe('keys', () => {
  test('without a known one nothing is answered but health', async () => {
    await expect(asWith('wrong').models.list()).rejects.toBeInstanceOf(OpenAI.AuthenticationError);
    const anonymous = connect({ address: fixture.mesh.record.gateway });
    await expect(anonymous.inference.countTokens({ text: 'x' })).rejects.toMatchObject({
      code: 'unauthenticated',
      reason: 'API_KEY_MISSING',
    });
    anonymous.close();
    expect((await fetch(`http://${fixture.mesh.record.http}/health`)).status).toBe(200);
  });

  test('a ward may ask for text and change nothing', async () => {
    const ward = connect({ address: fixture.mesh.record.gateway, apiKey: wardKey });
    expect(
      (await ward.inference.countTokens({ text: 'x' }, { base: 'projects/default/models/demo-nf4' })).promptTokenCount,
    ).toBe(1);
    await expect(ward.raw.inferenceAdmin.getLoad({})).rejects.toMatchObject({ reason: 'ACCESS_TOO_SMALL' });
    await expect(Array.fromAsync(ward.models.list())).rejects.toMatchObject({ code: 'permission_denied' });
    ward.close();
  });

  test('a tenant cannot cancel what another one asked', async () => {
    const ward = connect({ address: fixture.mesh.record.gateway, apiKey: wardKey });
    const events = admin.raw.inference.generate({
      requestId: 'shared-id',
      model: { base: 'projects/default/models/demo-nf4' },
      input: { $case: 'text', value: 'The patient' },
      // Long enough to be running still: it does not wait for its reader.
      sampling: { maxTokens: 2000, ignoreEos: true, n: 16, temperature: 1 },
    });
    for await (const _ of events) {
      expect(await ward.raw.inference.cancel({ requestId: 'shared-id' })).toEqual({ found: false });
      expect(await admin.raw.inference.cancel({ requestId: 'shared-id' })).toEqual({ found: true });
      break;
    }
    ward.close();
  });

  test('a changed file takes effect without a restart', async () => {
    const fresh = randomBytes(24).toString('hex');
    writeKeys(fresh);
    await waitFor(
      async () =>
        (await asWith(fresh)
          .models.list()
          .then(
            () => true,
            () => false,
          )) === true,
      {
        timeoutMs: 10_000,
      },
    );
    await expect(asWith(wardKey).models.list()).rejects.toMatchObject({ status: 401 });
    writeKeys(wardKey);
    await waitFor(
      async () =>
        (await asWith(wardKey)
          .models.list()
          .then(
            () => true,
            () => false,
          )) === true,
      {
        timeoutMs: 10_000,
      },
    );
  });
});

test('the Open Inference Protocol tells health without a key, and models with one', async () => {
  const channel = openChannel(fixture.mesh.record.gateway);
  const oip = createClient(openInference.GRPCInferenceServiceDefinition, channel);
  expect(await oip.serverLive({})).toEqual({ live: true });
  expect(await oip.serverReady({})).toEqual({ ready: true });
  const name = 'projects/default/adapters/ward';
  await expect(oip.modelReady({ name })).rejects.toMatchObject({ code: 'unauthenticated' });
  channel.close();
  const known = admin.raw.openInference;
  expect(await known.modelReady({ name })).toEqual({ ready: true });
  expect(await known.modelReady({ name: 'projects/default/adapters/none' })).toEqual({ ready: false });
  const metadata = await known.modelMetadata({ name });
  expect(metadata.platform).toBe('medmesh_nf4-double-quant');
  expect(metadata.versions[0]).toMatch(/^sha256:/);
  expect(await known.modelReady({ name, version: metadata.versions[0]! })).toEqual({ ready: true });
  expect(await known.modelReady({ name, version: 'sha256:0' })).toEqual({ ready: false });
});
