import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Tokenizer } from 'tokenizers';
import { type CorpusOptions, generateCorpus } from './corpus.ts';
import { languages } from './facts.ts';
import { generalProse } from './general-prose.ts';
import { type Merge, untrainedTokenizerJson } from './tokenizer-files.ts';

/** The corpus the tokenizer learns from. Small: only the ranks of its frequent pairs matter. */
export const tokenizerCorpus: CorpusOptions = {
  seed: 3407,
  documentCount: 6000,
  // A line feed keeps Chinese phrases and the words around them in separate merges. Without spaces between words, the
  // pair that joins "的" to a frequent disease would be merged before the disease itself is whole.
  chineseBoundary: '\n',
};

/**
 * How often each sentence of general prose is shown beside the corpus. It is rare there, and without this the words of
 * every prompt would be spelt letter by letter.
 */
const generalProseRepeats = 60;

function trainingText(): string {
  const documents = Array.from(generateCorpus(tokenizerCorpus), (document) => document.text);
  const general = languages.flatMap((language) => generalProse[language]);
  return [...documents, ...Array.from({ length: generalProseRepeats }, () => general).flat()].join('\n');
}

/** Learns the merges of byte-level BPE from the corpus, most frequent first. The same every time. */
export async function trainMerges(): Promise<readonly Merge[]> {
  const folder = await mkdtemp(path.join(tmpdir(), 'medmesh-tokenizer-'));
  try {
    const corpusPath = path.join(folder, 'corpus.txt');
    const savedPath = path.join(folder, 'tokenizer.json');
    await writeFile(corpusPath, trainingText());
    const tokenizer = Tokenizer.fromString(JSON.stringify(untrainedTokenizerJson()));
    tokenizer.train([corpusPath]);
    tokenizer.save(savedPath);
    const saved = JSON.parse(await readFile(savedPath, 'utf8')) as { model: { merges: Merge[] } };
    return saved.model.merges;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
