/**
 * Formats generated rows as the service does, and prints speed, peak memory, and how late the event loop was.
 *   node services/formatter/bench/format.ts [rows] [tokenizer folder]
 * Without a folder of a real tokenizer a tiny one is used, whose speed says little.
 */
import { createReadStream, createWriteStream } from 'node:fs';
import { mkdtemp, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { dataset } from '@medmesh/proto';
import { loadTokenizer, resolveTemplate } from '@medmesh/text';
import { writeTinyTokenizer } from '@medmesh/text/testing';
import { resolveSpec } from '../src/pipeline/resolve-spec.ts';
import { formatInThread } from '../src/thread/format-in-thread.ts';

const rowCount = Number(process.argv[2] ?? 200_000);
const dir = await mkdtemp(join(tmpdir(), 'medmesh-format-bench-'));
try {
  const path = join(dir, 'rows.jsonl');
  await pipeline(Readable.from(generateRows(rowCount)), createWriteStream(path));
  const { size } = await stat(path);
  const tokenizerDir = process.argv[3] ?? (await writeTinyTokenizer(join(dir, 'tokenizer')));
  // The service holds one of its own, for templates and previews.
  const tokenizer = await loadTokenizer(tokenizerDir);
  const template = resolveTemplate(undefined, tokenizer);
  const spec = resolveSpec(
    dataset.DatasetVersionSpec.fromPartial({
      sources: [{ uri: `file://${path}` }],
      model: 'projects/bench/models/bench',
      validationFraction: 0.05,
    }),
  );

  const delay = monitorEventLoopDelay({ resolution: 5 });
  let peakBytes = 0;
  let rowsDone = 0;
  const rssOver: [rows: number, mebibytes: number][] = [];
  const sampler = setInterval(() => {
    const rss = process.memoryUsage.rss();
    peakBytes = Math.max(peakBytes, rss);
    // A point for every tenth of the rows: memory that grows with them shows.
    if (rowsDone >= (rssOver.length * rowCount) / 10) rssOver.push([rowsDone, Math.round(rss / 2 ** 20)]);
  }, 50);
  const before = process.cpuUsage();
  const begun = performance.now();
  delay.enable();
  let stored = 0;
  const result = await formatInThread(
    {
      sources: [
        {
          format: { rows: 'jsonl', compression: 'none', charset: 'utf-8' },
          open: () => createReadStream(path, { highWaterMark: 256 * 1024 }),
        },
      ],
      openTokenizer: async () => ({ dir: tokenizerDir, release: () => undefined }),
      template,
      onProgress: (progress) => {
        rowsDone = progress.rowCount;
      },
      limits: { maxFieldLength: 2 ** 20, maxRowLength: 2 ** 24, maxRowCount: 10_000_000 },
      sink: {
        putBlob: async (source) => {
          const sizeBytes = (source as Uint8Array).length;
          stored += sizeBytes;
          return { digest: `sha256:${'0'.repeat(64)}`, sizeBytes };
        },
      },
    },
    spec,
    AbortSignal.timeout(3_600_000),
  );
  delay.disable();
  const wallSeconds = (performance.now() - begun) / 1000;
  const cpu = process.cpuUsage(before);
  const cpuSeconds = (cpu.user + cpu.system) / 1e6;
  clearInterval(sampler);
  process.stdout.write(
    `${JSON.stringify({
      rows: result.stats.rowCount,
      used: result.stats.usedRowCount,
      textMegabytes: round(size / 1e6),
      tokens: result.stats.tokenCount,
      shardMegabytes: round(stored / 1e6),
      wallSeconds: round(wallSeconds),
      cpuSeconds: round(cpuSeconds),
      megabytesPerSecond: round(size / 1e6 / wallSeconds),
      megabytesPerCoreSecond: round(size / 1e6 / cpuSeconds),
      peakRssMebibytes: Math.round(peakBytes / 2 ** 20),
      rssMebibytesByRows: Object.fromEntries(rssOver),
      eventLoopDelayP99Ms: round(delay.percentile(99) / 1e6),
      packingEfficiency: round(result.stats.packingEfficiency),
    })}\n`,
  );
} finally {
  await rm(dir, { recursive: true, force: true });
}

function round(value: number): number {
  return Math.round(value * 100) / 100;
}

/** Rows of about 1.2 kB, no two alike: sentences over small vocabularies, every third row Chinese. */
function* generateRows(count: number): Generator<string> {
  const english =
    'the patient reports pain in left knee after running swelling no fever history of injury examination shows tenderness over medial joint line range motion reduced imaging is advised treatment rest ice compression follow up two weeks'.split(
      ' ',
    );
  const chinese = [
    '患者',
    '主诉',
    '左膝',
    '疼痛',
    '三天',
    '活动后',
    '加重',
    '无发热',
    '既往',
    '体健',
    '查体',
    '压痛',
    '关节',
    '肿胀',
    '建议',
    '影像学检查',
    '休息',
    '冰敷',
    '复诊',
    '随访',
    '，',
    '。',
  ];
  let state = 1;
  const random = (n: number): number => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * n);
  };
  const words = (n: number, list: readonly string[], gap: string): string =>
    Array.from({ length: n }, () => list[random(list.length)]).join(gap);
  for (let i = 0; i < count; i++) {
    const [list, gap, scale] = i % 3 === 0 ? ([chinese, '', 1] as const) : ([english, ' ', 1.3] as const);
    const text = (n: number): string => words(Math.round(n * scale), list, gap);
    yield `${JSON.stringify({ Question: `${i} ${text(25)}?`, Complex_CoT: text(90), Response: text(40) })}\n`;
  }
}
