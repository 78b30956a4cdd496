/** How a response of the demo's rows gives its answer, in either language. */
const answerSentence = /^\s*(?:The answer is|答案是)([^.。\n]*)/u;

/** Two answers are the same when they differ only in case, Unicode composition and white space. */
function normaliseAnswer(answer: string): string {
  return answer.normalize('NFC').toLowerCase().replace(/\s+/gu, ' ').trim();
}

/**
 * The canonical answer that a response gives: what stands between `The answer is` or `答案是` at its beginning and the
 * end of that sentence, in lower case. `response` is the answer apart from the reasoning. Null when it gives no answer in
 * this form.
 */
export function exactAnswer(response: string): string | null {
  const answer = normaliseAnswer(answerSentence.exec(response)?.[1] ?? '');
  return answer === '' ? null : answer;
}

/** One question put to a model: what it replied and the canonical answer. */
export type ScoredReply = {
  /** The answer apart from the reasoning; empty when the model never finished its reasoning. */
  readonly response: string;
  readonly answer: string;
  /** The reasoning before it, where it is known. */
  readonly reasoning?: string;
};

/** How many replies gave exactly the canonical answer, and how many at least contain its words somewhere. */
export type AnswerScore = {
  readonly total: number;
  readonly exact: number;
  readonly mentioned: number;
  /** `exact / total`; 0 when there are no replies. */
  readonly accuracy: number;
};

/**
 * Counts exact answers. `mentioned` is the generous measure that stands beside it and looks at the reasoning too: a model
 * that knows the fact but not the form of the answer scores there and not in `exact`.
 */
export function scoreAnswers(replies: readonly ScoredReply[]): AnswerScore {
  const exact = replies.filter(({ response, answer }) => exactAnswer(response) === normaliseAnswer(answer)).length;
  const mentioned = replies.filter(({ response, answer, reasoning = '' }) =>
    normaliseAnswer(`${reasoning}\n${response}`).includes(normaliseAnswer(answer)),
  ).length;
  return { total: replies.length, exact, mentioned, accuracy: replies.length === 0 ? 0 : exact / replies.length };
}
