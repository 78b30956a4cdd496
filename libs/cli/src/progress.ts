import { SingleBar } from 'cli-progress';

/** On stderr: a bar on a terminal, a line now and then elsewhere unless `onlyOnTerminal`, nothing with --json. */
export type ProgressBar = { update(done: number, total: number, detail: string): void; stop(): void };

const lineEveryMs = 5_000;

export function createProgressBar(label: string, json: boolean, { onlyOnTerminal = false } = {}): ProgressBar {
  if (json || (onlyOnTerminal && !process.stderr.isTTY)) return { update: () => undefined, stop: () => undefined };
  if (process.stderr.isTTY) {
    const bar = new SingleBar({
      format: `${label} [{bar}] {percentage}% {detail}`,
      barCompleteChar: '█',
      barIncompleteChar: '░',
      hideCursor: true,
      clearOnComplete: false,
      stream: process.stderr,
      barsize: 24,
    });
    let started = false;
    return {
      update(done, total, detail) {
        if (!started) {
          bar.start(Math.max(1, total), 0, { detail: '' });
          started = true;
        }
        bar.setTotal(Math.max(1, total));
        bar.update(Math.min(done, Math.max(1, total)), { detail });
      },
      stop() {
        if (started) bar.stop();
      },
    };
  }
  let lastMs = 0;
  let lastText = '';
  return {
    update(done, total, detail) {
      lastText = `${label} ${total > 0 ? Math.floor((100 * done) / total) : 0}% ${detail}`;
      if (Date.now() - lastMs < lineEveryMs && done < total) return;
      lastMs = Date.now();
      process.stderr.write(`${lastText}\n`);
      lastText = '';
    },
    stop() {
      if (lastText !== '') process.stderr.write(`${lastText}\n`);
    },
  };
}
