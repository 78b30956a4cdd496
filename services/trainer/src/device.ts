import { type EngineDevice, listDevices } from '@medmesh/engine';
import { Failure } from '@medmesh/errors';

/**
 * The device that training runs on: the one named, or for `auto` the first GPU if there is one, else the CPU.
 * Failure `failed_precondition` DEVICE_MISSING for a GPU that is not there: it is this process that is at fault, not a job.
 */
export function chooseDevice(name: string, devices: readonly EngineDevice[] = listDevices()): EngineDevice {
  const [kind, index] =
    name === '' || name === 'auto' ? [undefined, 0] : [name.split(':')[0], Number(name.split(':')[1] ?? 0)];
  const found =
    kind === undefined
      ? (devices.find((device) => device.kind === 'cuda') ?? devices.find((device) => device.kind === 'cpu'))
      : devices.find((device) => device.kind === kind && device.index === index);
  if (found !== undefined) return found;
  const known = devices.map((device) => `${device.kind}:${device.index}`).join(', ');
  throw new Failure(
    'failed_precondition',
    `ENGINE_DEVICE is ${name}, which this machine does not have; it has ${known}`,
    {
      reason: 'DEVICE_MISSING',
    },
  );
}

/** One line for people: kind, architecture and size. */
export const describeDevice = (device: EngineDevice): string =>
  device.kind === 'cpu'
    ? `cpu (${device.isa}, ${device.threads} threads)`
    : `cuda:${device.index} (${device.name}, ${device.isa})`;
