import type { EngineDevice } from '@medmesh/engine';

/**
 * Dense bf16 products with fp32 sums, in TFLOP/s, as the makers' datasheets give them at the boost clock. A part's name is what the driver calls it; the
 * first that fits counts, so longer names come first. Clocks fall under load: an H200 that multiplies large random matrices reaches about 790 of its 989.
 */
const datasheetTeraflops: readonly (readonly [name: string, peak: number])[] = [
  ['B200', 2250],
  ['GH200', 989.4],
  ['H200', 989.4],
  ['H100 PCIe', 756],
  ['H100 NVL', 835],
  ['H100', 989.4],
  ['H800', 989.4],
  ['A100', 312],
  ['A800', 312],
  ['A40', 149.7],
  ['A30', 165],
  ['L40S', 362],
  ['L40', 181],
  ['L4', 121],
  ['RTX 4090', 165.2],
  ['RTX 3090', 71],
];

/** FLOP/s that a device could do at most; undefined for a CPU and for a GPU that is not in the table. */
export function bf16Peak(device: Pick<EngineDevice, 'kind' | 'name'>): number | undefined {
  if (device.kind !== 'cuda') return undefined;
  const words = ` ${device.name} `.replaceAll('-', ' ');
  const teraflops = datasheetTeraflops.find(([name]) => words.includes(` ${name} `))?.[1];
  return teraflops === undefined ? undefined : teraflops * 1e12;
}
