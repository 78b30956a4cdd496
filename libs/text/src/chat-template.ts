import { Failure } from '@medmesh/errors';
import { renderSkeleton, type SkeletonPart, trimMessage } from './chat-skeleton.ts';
import { compileJinja } from './jinja.ts';
import { promptSlots, type Row, type Slots, type Turn, turnsOfRow } from './row.ts';
import type { Segment } from './segment.ts';
import { type Piece, renderCompletionPieces } from './slot-text.ts';
import type { RenderedPrompt, TemplateRenderer } from './template.ts';
import { isTurns } from './text-template.ts';
import { endsInsideThink, type ReasoningMode, reasoningSwitch, thinkEnd, thinkStart } from './think.ts';
import type { TextTokenizer } from './tokenizer.ts';

/** A published Jinja chat template with the settings that decide its output. */
export type JinjaChatTemplate = {
  readonly kind: 'chat';
  /** The Jinja source. */
  readonly source: string;
  /** A system message put before every conversation that has none; empty means none. */
  readonly system: string;
  /** Values of the template's `bos_token` and `eos_token`. */
  readonly bosToken: string;
  readonly eosToken: string;
};

/** So many shapes of conversation (roles and modes) are kept rendered. */
const maxSkeletons = 256;
/** Longest conversation that is rendered, in messages. */
const maxTurns = 1024;

/**
 * Compiles a chat template.
 *
 * A training example is the prompt that serving would send before the last assistant message, then that message. Published
 * templates cut the reasoning out of assistant messages, so the reasoning is written here, in the template's own way:
 * after the `<think>` that its generation prompt opens, or in a `<think>` block of its own. Earlier assistant messages
 * stand as the template renders them, and count as responses too.
 */
export function compileChatTemplate(template: JinjaChatTemplate, tokenizer: TextTokenizer): TemplateRenderer {
  const jinja = compileJinja(template.source);
  const skeletons = new Map<string, SkeletonPart[]>();
  const skeletonOf = (turns: readonly Turn[], generate: boolean, thinking?: boolean): SkeletonPart[] => {
    const key = `${generate ? 'g' : ''}${thinking === undefined ? '' : Number(thinking)}:${turns.map((t) => t.role[0]! + (t.content === '' ? '0' : '')).join()}`;
    const known = skeletons.get(key);
    if (known !== undefined) return known;
    const parts = renderSkeleton(
      (messages) =>
        jinja({
          messages,
          bos_token: template.bosToken,
          eos_token: template.eosToken,
          add_generation_prompt: generate,
          ...(thinking === undefined ? {} : { enable_thinking: thinking }),
        }),
      turns,
    );
    if (skeletons.size >= maxSkeletons) skeletons.clear();
    skeletons.set(key, parts);
    return parts;
  };

  const probe: Turn[] = [{ role: 'user', content: 'q' }];
  const endToken = findEndToken(skeletonOf([...probe, { role: 'assistant', content: 'a' }], false), tokenizer);
  const completion = findCompletion(
    template.source,
    literalText(skeletonOf(probe, true)),
    literalText(skeletonOf(probe, true, false)),
  );
  const eos: Segment = { kind: 'eos', text: endToken, special: true };

  const promptOf = (given: readonly Turn[]): Segment[] => {
    const turns = withSystem(given, template.system);
    if (turns.length > maxTurns) {
      throw new Failure(
        'invalid_argument',
        `the conversation has ${turns.length} messages; at most ${maxTurns} are accepted`,
        {
          reason: 'CONVERSATION_TOO_LONG',
        },
      );
    }
    return fill(skeletonOf(turns, true), turns, endToken);
  };

  return {
    endToken,
    renderExample(row: Row): Segment[] {
      const turns = turnsOfRow(row);
      const last = turns.at(-1);
      if (last?.role !== 'assistant') {
        throw new Failure('invalid_argument', 'the conversation does not end with an assistant message', {
          reason: 'TEMPLATE_MISMATCH',
        });
      }
      const reasoning = last.reasoning ?? '';
      const answer = {
        question: '',
        instruction: '',
        input: '',
        reasoning,
        response: last.content,
        output: last.content,
      };
      const pieces = reasoning === '' ? completion.withoutReasoning : completion.withReasoning;
      return [...promptOf(turns.slice(0, -1)), ...renderCompletionPieces(pieces, answer), eos];
    },
    renderPrompt(input: Slots | readonly Turn[], mode: ReasoningMode): RenderedPrompt {
      const turns = isTurns(input) ? input : turnsOfSlots(input);
      if (turns.at(-1)?.role !== 'user') {
        throw new Failure('invalid_argument', 'a conversation to answer ends with a user message', {
          reason: 'TEMPLATE_MISMATCH',
        });
      }
      // What earlier assistant messages are part of matters to the loss only; to the model all of it is prompt.
      const asked = promptOf(turns);
      const segments = [...asked, ...reasoningSwitch(mode, asked, completion)];
      return { segments, startsInsideThink: endsInsideThink(segments) };
    },
  };
}

function turnsOfSlots(slots: Slots): Turn[] {
  const { question } = promptSlots(slots);
  if (question === undefined) {
    throw new Failure('invalid_argument', 'the chat template needs a value for {{question}} or {{instruction}}', {
      reason: 'SLOT_MISSING',
      fields: [{ field: 'question', description: 'give it a value' }],
    });
  }
  return [{ role: 'user', content: question }];
}

const withSystem = (turns: readonly Turn[], system: string): readonly Turn[] =>
  system === '' || turns[0]?.role === 'system' ? turns : [{ role: 'system', content: system }, ...turns];

const literalText = (parts: readonly SkeletonPart[]): string =>
  parts.map((p) => ('literal' in p ? p.literal : '\uE0F0')).join('');

/** Puts the messages into the skeleton. An assistant's message and the token that ends it are marked as such. */
function fill(parts: readonly SkeletonPart[], turns: readonly Turn[], endToken: string): Segment[] {
  let spoken = false;
  return parts.flatMap((p): Segment[] => {
    if (!('literal' in p)) {
      const { role, content } = turns[p.turn]!;
      spoken = role === 'assistant';
      return [{ kind: spoken ? 'response' : 'prompt', text: trimMessage(content, p.left, p.right), special: false }];
    }
    const ended = spoken && p.literal.startsWith(endToken);
    spoken = false;
    if (!ended) return [{ kind: 'prompt', text: p.literal, special: true }];
    return [
      { kind: 'eos', text: endToken, special: true },
      { kind: 'prompt', text: p.literal.slice(endToken.length), special: true },
    ];
  });
}

/** The token that follows an assistant's message: what the model must learn to end with. */
function findEndToken(parts: readonly SkeletonPart[], tokenizer: TextTokenizer): string {
  const after = parts.at(-1);
  const literal = after !== undefined && 'literal' in after ? after.literal : '';
  for (let end = literal.length; end > 0; end--) {
    const candidate = literal.slice(0, end);
    if (tokenizer.addedTokenId(candidate) !== undefined) return candidate;
  }
  return tokenizer.eosToken;
}

/** How an answer with and without reasoning is written after the generation prompt. */
function findCompletion(
  source: string,
  prompt: string,
  promptWithoutThinking: string,
): { withReasoning: Piece[]; withoutReasoning: Piece[] } {
  const response: Piece = { slot: 'response' };
  const inside = prompt.lastIndexOf(thinkStart) > prompt.lastIndexOf(thinkEnd);
  const open = inside ? [] : [{ literal: `${thinkStart}\n` }];
  const withReasoning: Piece[] = [...open, { slot: 'reasoning' }, { literal: `\n${thinkEnd}\n\n` }, response];
  const off = promptWithoutThinking.startsWith(prompt) ? promptWithoutThinking.slice(prompt.length) : '';
  if (off !== '') return { withReasoning, withoutReasoning: [{ literal: off }, response] };
  if (inside) return { withReasoning, withoutReasoning: [{ literal: `\n${thinkEnd}\n\n` }, response] };
  // A template that never speaks of thinking belongs to a model that answers at once.
  const bare = source.includes(thinkEnd) ? [{ literal: `${thinkStart}\n\n${thinkEnd}\n\n` }] : [];
  return { withReasoning, withoutReasoning: [...bare, response] };
}
