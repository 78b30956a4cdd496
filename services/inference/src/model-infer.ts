import { invalidField } from '@medmesh/errors';
import { inference, openInference } from '@medmesh/proto';
import type { Servable } from './open-inference.ts';

export type Complete = (
  request: inference.GenerateRequest,
  tenant: string,
  signal: AbortSignal,
) => Promise<inference.GenerateResult>;

export const inputNames = ['prompt', 'text'] as const;
export const outputNames = ['answer', 'reasoning'] as const;
type OutputName = (typeof outputNames)[number];

const maxTexts = 16;

/** A raw tensor of BYTES: each value after its length. */
function fromRaw(raw: Uint8Array): Uint8Array[] {
  const bytes = Buffer.from(raw);
  const values: Uint8Array[] = [];
  for (let at = 0; at < bytes.length; ) {
    const length = at + 4 <= bytes.length ? bytes.readUInt32LE(at) : Number.POSITIVE_INFINITY;
    if (at + 4 + length > bytes.length) throw invalidField('raw_input_contents[0]', 'ends inside a value');
    values.push(bytes.subarray(at + 4, at + 4 + length));
    at += 4 + length;
  }
  return values;
}

function toRaw(values: readonly Buffer[]): Buffer {
  const sized = values.flatMap((value) => {
    const length = Buffer.alloc(4);
    length.writeUInt32LE(value.length);
    return [length, value];
  });
  return Buffer.concat(sized);
}

function textOf(bytes: Uint8Array, field: string): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw invalidField(field, 'holds a value that is not UTF-8');
  }
}

/** The texts of the one input. Failure `invalid_argument` naming what is of another name, type or shape. */
function textsOf({ inputs, rawInputContents }: openInference.ModelInferRequest) {
  const [input] = inputs;
  if (input === undefined || inputs.length > 1) throw invalidField('inputs', `has ${inputs.length}; give one`);
  const name = inputNames.find((known) => known === input.name);
  if (name === undefined) throw invalidField('inputs[0].name', `use ${inputNames.join(' or ')}`);
  if (input.datatype !== 'BYTES') throw invalidField('inputs[0].datatype', 'use BYTES');
  const [unknown] = Object.keys(input.parameters);
  if (unknown !== undefined) throw invalidField('inputs[0].parameters', `${JSON.stringify(unknown)} is not known`);
  const raw = rawInputContents.length > 0;
  if (raw && rawInputContents.length !== 1)
    throw invalidField('raw_input_contents', `has ${rawInputContents.length} entries; one input has one`);
  if (raw && input.contents !== undefined)
    throw invalidField('inputs[0].contents', 'is given beside raw_input_contents; give one of the two');
  const field = raw ? 'raw_input_contents[0]' : 'inputs[0].contents.bytes_contents';
  const values = raw ? fromRaw(rawInputContents[0] ?? new Uint8Array()) : (input.contents?.bytesContents ?? []);
  const { shape } = input;
  if (shape.length < 1 || shape.length > 2 || (shape.length === 2 && shape[1] !== 1))
    throw invalidField('inputs[0].shape', `is [${shape.join(', ')}]; use [n] or [n, 1]`);
  const [count = 0] = shape;
  if (count < 1 || count > maxTexts) throw invalidField('inputs[0].shape', `has n = ${count}; use 1 to ${maxTexts}`);
  if (values.length !== count) throw invalidField(field, `has ${values.length} values; the shape says ${count}`);
  return { name, shape, raw, texts: values.map((value) => textOf(value, field)) };
}

type Choice = openInference.InferParameter['parameterChoice'];

const numberOf = (choice: Choice): number | undefined => {
  if (choice?.$case === 'int64Param' || choice?.$case === 'uint64Param' || choice?.$case === 'doubleParam')
    return Number(choice.value);
  return undefined;
};
const wholeOf = (choice: Choice): number | undefined => {
  const value = numberOf(choice);
  return Number.isSafeInteger(value) ? value : undefined;
};

type SamplingPart = Parameters<typeof inference.Sampling.fromPartial>[0];

/** How a parameter becomes part of the sampling; undefined where its value is of another kind. */
const parameters: Record<string, { kind: string; read: (choice: Choice) => SamplingPart | undefined }> = {
  ...Object.fromEntries(
    (
      [
        ['temperature', 'temperature'],
        ['top_p', 'topP'],
        ['min_p', 'minP'],
        ['repetition_penalty', 'repetitionPenalty'],
        ['presence_penalty', 'presencePenalty'],
        ['frequency_penalty', 'frequencyPenalty'],
      ] as const
    ).map(([name, key]) => [name, { kind: 'a number', read: (c: Choice) => part(key, numberOf(c)) }]),
  ),
  ...Object.fromEntries(
    (
      [
        ['top_k', 'topK'],
        ['seed', 'seed'],
        ['max_tokens', 'maxTokens'],
      ] as const
    ).map(([name, key]) => [name, { kind: 'a whole number', read: (c: Choice) => part(key, wholeOf(c)) }]),
  ),
  stop: { kind: 'a text', read: (c) => (c?.$case === 'stringParam' ? { stop: [c.value] } : undefined) },
  ignore_eos: { kind: 'true or false', read: (c) => (c?.$case === 'boolParam' ? { ignoreEos: c.value } : undefined) },
};
const part = (key: string, value: number | undefined): SamplingPart | undefined =>
  value === undefined ? undefined : { [key]: value };

function samplingOf(given: openInference.ModelInferRequest['parameters']): inference.Sampling {
  const parts = Object.entries(given).map(([name, { parameterChoice }]) => {
    const known = Object.hasOwn(parameters, name) ? parameters[name] : undefined;
    if (known === undefined)
      throw invalidField(
        'parameters',
        `${JSON.stringify(name)} is not known; use ${Object.keys(parameters).join(', ')}`,
      );
    const read = known.read(parameterChoice);
    if (read === undefined) throw invalidField(`parameters[${name}]`, `use ${known.kind}`);
    return read;
  });
  return inference.Sampling.fromPartial(Object.assign({}, ...parts) as SamplingPart);
}

function wantedOutputs({ outputs }: openInference.ModelInferRequest): readonly OutputName[] {
  if (outputs.length === 0) return outputNames;
  return outputs.map(({ name, parameters: given }, i) => {
    const known = outputNames.find((output) => output === name);
    if (known === undefined) throw invalidField(`outputs[${i}].name`, `use ${outputNames.join(' or ')}`);
    const [unknown] = Object.keys(given);
    if (unknown !== undefined)
      throw invalidField(`outputs[${i}].parameters`, `${JSON.stringify(unknown)} is not known`);
    return known;
  });
}

/** Answers every text of the request; one that fails ends the others. */
export async function modelInfer(
  complete: Complete,
  request: openInference.ModelInferRequest,
  { digest, ref }: Servable,
  tenant: string,
  callSignal: AbortSignal,
): Promise<openInference.ModelInferResponse> {
  const { name, shape, raw, texts } = textsOf(request);
  const sampling = samplingOf(request.parameters);
  const wanted = wantedOutputs(request);
  const failed = new AbortController();
  const signal = AbortSignal.any([callSignal, failed.signal]);
  const answering = texts.map((text) => {
    const input: inference.GenerateRequest['input'] =
      name === 'text'
        ? { $case: 'text', value: text }
        : { $case: 'template', value: { slots: { question: text }, builtin: '' } };
    return complete(inference.GenerateRequest.fromPartial({ model: ref, input, sampling }), tenant, signal);
  });
  let results: inference.GenerateResult[];
  try {
    results = await Promise.all(answering);
  } catch (error) {
    failed.abort();
    await Promise.allSettled(answering);
    throw error;
  }
  const choices = results.flatMap(({ choices: [first] }) => first ?? []);
  const sum = (read: (usage: inference.Usage) => number) => ({
    parameterChoice: {
      $case: 'int64Param' as const,
      value: choices.reduce((total, { finished }) => total + (finished?.usage ? read(finished.usage) : 0), 0),
    },
  });
  const bytesOf = (output: OutputName) => choices.map((choice) => Buffer.from(choice[output]));
  return openInference.ModelInferResponse.fromPartial({
    modelName: request.modelName,
    modelVersion: digest,
    id: request.id,
    parameters: {
      prompt_tokens: sum((usage) => usage.promptTokenCount),
      completion_tokens: sum((usage) => usage.reasoningTokenCount + usage.answerTokenCount),
    },
    outputs: wanted.map((output) => ({
      name: output,
      datatype: 'BYTES',
      shape,
      ...(raw ? {} : { contents: { bytesContents: bytesOf(output) } }),
    })),
    rawOutputContents: raw ? wanted.map((output) => toRaw(bytesOf(output))) : [],
  });
}
