import { thinkEnd, thinkStart } from './think.ts';

/** A piece of generated text and what it is part of. */
export type ChannelText = { readonly channel: 'reasoning' | 'answer'; readonly text: string };

export type ReasoningSplitter = {
  /**
   * The next text, or the id of the next token where `</think>` is a token of its own. Returns what is certain by now; the
   * rest, at most a tag's length and line feeds, is held back.
   */
  push(next: string | number): ChannelText[];
  /** What was held back, at the end of the generation. */
  flush(): ChannelText[];
  /** Where the next text belongs. */
  readonly channel: 'reasoning' | 'answer';
};

/**
 * Splits generated text at `</think>`, however it is cut into chunks.
 *
 * The reasoning is the text before the first `</think>`, if the prompt ended inside `<think>` or the text opens with it;
 * a leading `<think>` is dropped either way. Line feeds next to the tags belong to the markup and are dropped. Tags after
 * the first `</think>` are plain answer text. Numbers pushed are ids of the think tokens; any other id is ignored, its
 * text comes as text.
 */
export function createReasoningSplitter(
  startsInside: boolean,
  ids: { readonly thinkStartId?: number | undefined; readonly thinkEndId?: number | undefined } = {},
): ReasoningSplitter {
  // start: nothing but line feeds seen, a `<think>` may still come. gap: right behind a tag, line feeds are dropped.
  let state: 'start' | 'gap' | 'reasoning' | 'answer-gap' | 'answer' = 'start';
  let held = '';
  const inside = (): boolean => state === 'reasoning' || state === 'gap' || (state === 'start' && startsInside);

  const step = (final: boolean): ChannelText[] => {
    const out: ChannelText[] = [];
    for (;;) {
      if (state === 'start') {
        const text = held.replace(/^\n+/, '');
        if (!final && text.length < thinkStart.length && thinkStart.startsWith(text)) return out;
        if (text.startsWith(thinkStart)) {
          held = text.slice(thinkStart.length);
          state = 'gap';
        } else if (startsInside) {
          held = text;
          state = 'reasoning';
        } else {
          // No reasoning came: the text is the answer as it is, leading line feeds dropped like behind a tag.
          held = text;
          state = 'answer';
        }
      } else if (state === 'gap' || state === 'answer-gap') {
        held = held.replace(/^\n+/, '');
        if (held === '') return out;
        state = state === 'gap' ? 'reasoning' : 'answer';
      } else if (state === 'reasoning') {
        const at = held.indexOf(thinkEnd);
        if (at >= 0) {
          emit(out, 'reasoning', held.slice(0, at).replace(/\n+$/, ''));
          held = held.slice(at + thinkEnd.length);
          state = 'answer-gap';
        } else {
          const safe = final ? held.length : safeLength(held);
          emit(out, 'reasoning', held.slice(0, safe));
          held = held.slice(safe);
          return out;
        }
      } else {
        emit(out, 'answer', held);
        held = '';
        return out;
      }
    }
  };

  return {
    push(next) {
      if (typeof next === 'string') {
        held += next;
        return step(false);
      }
      if (next === ids.thinkEndId && inside()) held += thinkEnd;
      else if (next === ids.thinkStartId && state === 'start') held += thinkStart;
      return step(false);
    },
    flush: () => step(true),
    get channel() {
      return inside() ? 'reasoning' : 'answer';
    },
  };
}

function emit(out: ChannelText[], channel: ChannelText['channel'], text: string): void {
  if (text !== '') out.push({ channel, text });
}

/** How much of `text` cannot belong to line feeds and a `</think>` that is still to come. */
function safeLength(text: string): number {
  const pending = /\n*(?:<(?:\/(?:t(?:h(?:i(?:n(?:k)?)?)?)?)?)?)?$/.exec(text);
  return pending === null ? text.length : pending.index;
}
