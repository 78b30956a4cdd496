import type { Adapter, Model } from '@medmesh/engine';
import { createReasoningSplitter, encodeSegments, type ResolvedTemplate, type TextTokenizer } from '@medmesh/text';

/** Longer than any reasoning and answer of the rows. */
const maxReplyTokens = 160;

/** A reply, split where the model ended its reasoning. The answer is empty if it never did. */
export type Reply = { readonly reasoning: string; readonly answer: string };

/** Asks with what; without an adapter the base answers. */
export type AskDeps = {
  readonly model: Model;
  readonly tokenizer: TextTokenizer;
  readonly template: ResolvedTemplate;
  readonly adapter?: Adapter | undefined;
};

/** The greedy reply to one question, straight from the engine. */
export async function ask({ model, tokenizer, template, adapter }: AskDeps, question: string): Promise<Reply> {
  const prompt = template.renderPrompt({ question });
  const [encoded] = await encodeSegments(tokenizer, [prompt.segments]);
  if (encoded === undefined) throw new Error('the prompt was not encoded');
  const sampling = {
    temperature: 0,
    topP: 1,
    topK: 0,
    minP: 0,
    repetitionPenalty: 1,
    presencePenalty: 0,
    frequencyPenalty: 0,
    seed: 0n,
    maxTokens: maxReplyTokens,
    stopTokenIds: [...template.stopTokenIds],
  };
  const ids: number[] = [];
  for await (const { tokenId } of model.generate({ tokens: encoded.ids, adapter, sampling })) {
    if (!template.stopTokenIds.includes(tokenId)) ids.push(tokenId);
  }
  const splitter = createReasoningSplitter(prompt.startsInsideThink);
  const parts = [...splitter.push(tokenizer.decode(ids)), ...splitter.flush()];
  const channelText = (channel: 'reasoning' | 'answer'): string =>
    parts.map((part) => (part.channel === channel ? part.text : '')).join('');
  return { reasoning: channelText('reasoning'), answer: channelText('answer') };
}
