import { Failure } from '@medmesh/errors';
import type { Role, Turn } from './row.ts';

/** White space that a template takes off a message: none, line feeds only, or all. */
type Trim = 'none' | 'newlines' | 'all';

/** A rendered conversation with holes where the messages' texts go. */
export type SkeletonPart =
  | { readonly literal: string }
  | { readonly turn: number; readonly left: Trim; readonly right: Trim };

/**
 * Renders the messages' texts out of a conversation: each is given to the template as a mark that no template can
 * mistake for text, and the result is cut at the marks. Tags inside a message therefore mean nothing to the template, and
 * the same skeleton serves every conversation with the same roles.
 *
 * Templates trim messages in several ways, so the conversation is rendered twice, with and without white space around
 * each mark, and the difference tells. A message left out, repeated or changed in another way is `failed_precondition`.
 */
export function renderSkeleton(
  render: (messages: readonly { role: Role; content: string }[]) => string,
  turns: readonly Pick<Turn, 'role' | 'content'>[],
): SkeletonPart[] {
  // Private-use characters: they cannot be part of a template's logic, and a template's own text has none.
  const mark = (i: number): string => `\uE0F0${i}\uE0F1`;
  const marked = turns.map((t, i) => ({ role: t.role, content: t.content === '' ? '' : mark(i) }));
  const spaced = marked.map((m) => ({ ...m, content: m.content === '' ? '' : `${edge}${m.content}${edge}` }));
  const bare = cutAtMarks(render(marked));
  const wide = cutAtMarks(render(spaced));

  const expected = marked.flatMap((m, i) => (m.content === '' ? [] : [i])).join();
  if (bare.turns.join() !== expected || wide.turns.join() !== expected) {
    const absent = marked.findIndex((m, i) => m.content !== '' && bare.turns.filter((t) => t === i).length !== 1);
    const where =
      absent < 0
        ? 'changes the order of messages'
        : `leaves out or repeats message ${absent} (${marked[absent]!.role})`;
    throw new Failure('failed_precondition', `the model's chat template ${where}`, {
      reason: 'CHAT_TEMPLATE_UNSUPPORTED',
    });
  }

  const parts: SkeletonPart[] = [];
  const lefts: Trim[] = [];
  const rights: Trim[] = [];
  bare.literals.forEach((literal, i) => {
    // Around literal i stand the end of the message before it and the beginning of the message after it.
    const before: readonly Trim[] = i === 0 ? ['none'] : trims;
    const after: readonly Trim[] = i === bare.literals.length - 1 ? ['none'] : trims;
    const found = before
      .flatMap((r) => after.map((l) => ({ r, l })))
      .find(
        ({ r, l }) =>
          wide.literals[i] ===
          (i === 0 ? '' : keptRight[r]) + literal + (i === bare.literals.length - 1 ? '' : keptLeft[l]),
      );
    if (found === undefined) {
      throw new Failure(
        'failed_precondition',
        "the model's chat template changes messages in a way that is not supported",
        {
          reason: 'CHAT_TEMPLATE_UNSUPPORTED',
        },
      );
    }
    rights.push(found.r);
    lefts.push(found.l);
  });
  bare.literals.forEach((literal, i) => {
    if (literal !== '') parts.push({ literal });
    const turn = bare.turns[i];
    if (turn !== undefined) parts.push({ turn, left: lefts[i]!, right: rights[i + 1]! });
  });
  return parts;
}

/** White space put around a mark, and what is left of it on either side under each way to trim. */
const edge = '\n \n';
const trims: readonly Trim[] = ['none', 'newlines', 'all'];
const keptLeft: Record<Trim, string> = { none: edge, newlines: ' \n', all: '' };
const keptRight: Record<Trim, string> = { none: edge, newlines: '\n ', all: '' };

/** Applies what the template would have done to a message's text. */
export function trimMessage(text: string, left: Trim, right: Trim): string {
  const begun = left === 'none' ? text : left === 'all' ? text.trimStart() : text.replace(/^\n+/, '');
  return right === 'none' ? begun : right === 'all' ? begun.trimEnd() : begun.replace(/\n+$/, '');
}

function cutAtMarks(text: string): { literals: string[]; turns: number[] } {
  const literals: string[] = [];
  const turns: number[] = [];
  let done = 0;
  for (const match of text.matchAll(/\uE0F0(\d+)\uE0F1/g)) {
    literals.push(text.slice(done, match.index));
    turns.push(Number(match[1]));
    done = match.index + match[0].length;
  }
  literals.push(text.slice(done));
  return { literals, turns };
}
