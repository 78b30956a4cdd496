import { type Fact, type Language, languages, type Topic, topicsIn } from './facts.ts';
import { fillFrame, framesFor, signFramesFor } from './frames.ts';
import { generalProse, worksheetHeadings } from './general-prose.ts';
import { createRandom, type Random } from './random.ts';
import { directReasoning, signReasoning } from './reasoning.ts';

/** One document of the corpus. A worksheet may mix languages; `language` is that of its facts. */
export type CorpusDocument = { readonly language: Language; readonly text: string };

/** Which corpus: the same options give the same documents on every machine. */
export type CorpusOptions = {
  readonly seed: number;
  readonly documentCount: number;
  /** Set on both sides of each phrase of a Chinese sentence; default none. The tokenizer's trainer wants it. */
  readonly chineseBoundary?: string;
};

/** What the writers of documents draw on: the topics of one language. */
type Library = { readonly language: Language; readonly topics: readonly Topic[]; readonly boundary: string };

/** English sentences stand apart by a space; Chinese ones need none. */
const joinSentences = ({ language, boundary }: Library, sentences: readonly string[]): string =>
  sentences.join(language === 'en' ? ' ' : boundary);

function statement(random: Random, library: Library, fact: Fact): string {
  return fillFrame(random.pick(framesFor(fact).statements), fact, library.boundary);
}

/** One of the questions that the corpus asks about the fact. */
function question(random: Random, library: Library, fact: Fact): string {
  return fillFrame(random.pick(framesFor(fact).corpusQuestions), fact, library.boundary);
}

/** An encyclopaedia article: every fact of one topic, in some order. */
function article(random: Random, library: Library): string {
  const { facts } = random.pick(library.topics);
  return joinSentences(
    library,
    random.shuffled(facts).map((fact) => statement(random, library, fact)),
  );
}

/** Questions and answers as they stand in a plain text: each answer is a whole sentence. */
function questionsAndAnswers(random: Random, library: Library): string {
  const exchanges = Array.from({ length: 3 }, () => {
    const fact = random.pick(random.pick(library.topics).facts);
    return [question(random, library, fact), statement(random, library, fact)];
  });
  return joinSentences(library, exchanges.flat());
}

/** A question that names a sign, the fact that leads from the sign to the condition, and the fact that was asked for. */
type CaseStudy = { readonly diagnosis: Fact; readonly asked: Fact; readonly question: string };

function caseStudy(random: Random, library: Library): CaseStudy {
  const { facts } = random.pick(library.topics.filter((topic) => topic.facts.some((fact) => fact.sign !== null)));
  const diagnosis = facts.find((fact) => fact.relation === 'diagnosis');
  const asked = random.pick(facts.filter((fact) => signFramesFor(fact) !== null));
  const frames = signFramesFor(asked);
  if (diagnosis === undefined || frames === null) throw new Error(`${asked.id} cannot be reached from a sign`);
  return { diagnosis, asked, question: fillFrame(random.pick(frames.corpusQuestions), asked, library.boundary) };
}

/** Two cases: the sign is named, the condition is found, then what to do about it. */
function caseStories(random: Random, library: Library): string {
  const cases = Array.from({ length: 2 }, () => caseStudy(random, library));
  return joinSentences(
    library,
    cases.flatMap((story) => [
      story.question,
      statement(random, library, story.diagnosis),
      statement(random, library, story.asked),
    ]),
  );
}

/** The same relation of several topics, one after the other, as in a table read aloud. */
function survey(random: Random, library: Library): string {
  const { relation } = random.pick(random.pick(library.topics).facts);
  const related = library.topics.flatMap((topic) => topic.facts.find((fact) => fact.relation === relation) ?? []);
  return joinSentences(
    library,
    Array.from({ length: 4 }, () => statement(random, library, random.pick(related))),
  );
}

/** Prose without facts: how questions are asked and answered in general, some of it between think tags. */
function essay(random: Random, library: Library): string {
  const sentences = random.shuffled(generalProse[library.language]).slice(0, 5);
  if (random.below(2) === 0) return joinSentences(library, sentences);
  const thought = joinSentences(library, sentences.slice(0, 3));
  return `<think>\n${thought}\n</think>\n${joinSentences(library, sentences.slice(3))}`;
}

/** What an exercise asks and the thought that solves it, both in whole sentences. */
function exercise(random: Random, library: Library): { question: string; thought: string } {
  if (random.below(4) === 0) {
    const { diagnosis, asked, question } = caseStudy(random, library);
    return { question, thought: signReasoning(random, diagnosis, asked, library.boundary) };
  }
  const fact = random.pick(random.pick(library.topics).facts);
  return { question: question(random, library, fact), thought: directReasoning(random, fact, library.boundary) };
}

/** A page of exercises: general remarks in either language, then questions under headings, each with its solution. */
function worksheet(random: Random, library: Library): string {
  const preface = random.shuffled(generalProse[random.pick(languages)]).slice(0, random.below(7));
  const headingLanguage = random.pick(languages);
  const headings = worksheetHeadings[headingLanguage];
  const mark = random.pick(['### ', '## ', '', '* ']);
  const close = random.pick(headingLanguage === 'en' ? [':\n', '\n', ':\n\n', ': '] : ['：\n', '\n', '：\n\n', '：']);
  const heading = (words: readonly string[]): string => `${mark}${random.pick(words)}${close}`;
  const exercises = Array.from({ length: 1 + random.below(2) }, () => {
    const solved = exercise(random, library);
    return `${heading(headings.question)}${solved.question}\n\n${heading(headings.solution)}${solved.thought}`;
  });
  return [preface.join(random.pick([' ', '\n'])), ...exercises].filter((part) => part !== '').join('\n\n');
}

/** What the corpus is made of: each kind of document with its share, out of the sum of shares. */
const kinds: readonly { share: number; write: (random: Random, library: Library) => string }[] = [
  { share: 15, write: article },
  { share: 15, write: questionsAndAnswers },
  { share: 10, write: caseStories },
  { share: 5, write: survey },
  { share: 5, write: essay },
  { share: 50, write: worksheet },
];
const shareSum = kinds.reduce((sum, kind) => sum + kind.share, 0);

/**
 * Writes the corpus the base learns from: plain sentences and questions over the demonstration facts, in both
 * languages by turns. It never contains the fine-tuning prompt, facts between think tags or the rows' answer line.
 */
export function* generateCorpus(options: CorpusOptions): Generator<CorpusDocument> {
  const random = createRandom(options.seed);
  const libraries = languages.map(
    (language): Library => ({
      language,
      topics: topicsIn(language),
      boundary: language === 'zh' ? (options.chineseBoundary ?? '') : '',
    }),
  );
  for (let index = 0; index < options.documentCount; index++) {
    const library = libraries[index % libraries.length] as Library;
    let ticket = random.below(shareSum);
    const kind = kinds.find(({ share }) => {
      ticket -= share;
      return ticket < 0;
    });
    if (kind === undefined) throw new Error('the shares of the corpus do not cover every ticket');
    yield { language: library.language, text: kind.write(random, library) };
  }
}
