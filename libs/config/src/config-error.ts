/** One thing wrong with the environment. `seen` never holds the value of a secret. */
export type ConfigFault = { readonly name: string; readonly seen: string; readonly expected: string };

/** The environment cannot configure this process. The message lists every fault, one a line. */
export class ConfigError extends Error {
  readonly faults: readonly ConfigFault[];

  constructor(faults: readonly ConfigFault[]) {
    const count = faults.length === 1 ? 'a fault' : `${faults.length} faults`;
    super(
      [
        `the configuration has ${count}:`,
        ...faults.map((f) => `  ${f.name}: saw ${f.seen}; expected ${f.expected}`),
      ].join('\n'),
    );
    this.name = 'ConfigError';
    this.faults = faults;
  }
}
