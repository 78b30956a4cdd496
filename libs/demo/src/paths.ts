import { fileURLToPath } from 'node:url';

const inPackage = (relative: string): string => fileURLToPath(new URL(`../${relative}`, import.meta.url));

/** The demo base: a Hugging Face model folder (config, tokenizer, weights) with the record of how it was made. */
export const demoBaseDir = inPackage('base');

/** The folder of tokenizer.json and tokenizer_config.json; the same one as the base's. */
export const demoTokenizerDir = demoBaseDir;

/** Rows to fine-tune on, JSON Lines. */
export const demoRowsPath = inPackage('data/rows.jsonl');

/** Rows to ask after fine-tuning, JSON Lines; their questions stand nowhere in the training rows or the corpus. */
export const demoHeldOutPath = inPackage('data/held-out.jsonl');
