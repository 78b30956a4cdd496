import { Utf8Stream } from '@medmesh/engine';
import { createReasoningSplitter, createStopMatcher, type TextTokenizer } from '@medmesh/text';

/** Text of new tokens, ready to be sent. */
export type Piece = { channel: 'reasoning' | 'answer'; text: string };

export type TextAssembler = {
  /** Takes the next token. `matchedStop` is set once, when a stop string is complete; nothing more comes after it. */
  push(tokenId: number): { pieces: Piece[]; matchedStop?: string };
  /** What was held back, at the end. */
  flush(): Piece[];
  readonly channel: 'reasoning' | 'answer';
};

/**
 * Tokens to text: whole characters only, reasoning and answer apart, nothing of a stop string. Stop strings end the answer; in the reasoning they
 * are ordinary text. `inline` leaves the text as it was written, tags and line feeds too; its channels still tell what is reasoning.
 */
export function createTextAssembler(
  tokenizer: TextTokenizer,
  startsInsideThink: boolean,
  stops: readonly string[],
  inline: boolean,
): TextAssembler {
  const utf8 = new Utf8Stream();
  const { thinkStartId, thinkEndId } = tokenizer;
  const splitter = createReasoningSplitter(startsInsideThink, { thinkStartId, thinkEndId });
  const stop = createStopMatcher(stops);
  let matchedStop: string | undefined;

  const send = (parts: { channel: 'reasoning' | 'answer'; text: string }[]): Piece[] => {
    const pieces: Piece[] = [];
    for (const part of parts) {
      if (part.channel === 'reasoning') {
        if (part.text !== '') pieces.push(part);
        continue;
      }
      const result = stop.push(part.text);
      if (result.text !== '') pieces.push({ channel: 'answer', text: result.text });
      matchedStop ??= result.matched;
    }
    return pieces;
  };

  return {
    push(tokenId) {
      const isTag = tokenId === thinkStartId || tokenId === thinkEndId;
      const text = utf8.push(tokenizer.tokenBytes(tokenId));
      const before = splitter.channel;
      const parts = isTag ? splitter.push(tokenId) : splitter.push(text);
      const channel = before === 'reasoning' ? before : splitter.channel;
      const pieces = send(inline ? [{ channel, text }] : parts);
      return matchedStop === undefined ? { pieces } : { pieces, matchedStop };
    },
    flush() {
      const rest = utf8.flush();
      const { channel } = splitter;
      const parts = [...splitter.push(rest), ...splitter.flush()];
      const pieces = send(inline ? [{ channel, text: rest }] : parts);
      const held = stop.flush();
      return held === '' ? pieces : [...pieces, { channel: 'answer', text: held }];
    },
    get channel() {
      return splitter.channel;
    },
  };
}
