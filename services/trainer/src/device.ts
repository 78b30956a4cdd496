import { type EngineDevice, listDevices } from '@medmesh/engine';
import { Failure } from '@medmesh/errors';

/**
 * The device that training runs on: the one named, or for `auto` the first GPU if there is one, else the CPU.
 * Failure `failed_precondition` DEVICE_MISSING for a GPU that is not there: it is this process that is at fault, not a job.
 */
export function chooseDevice(name: string, devices: readonly EngineDevice[] = listDevices()): EngineDevice {
  const [kind, index] = isFreeChoice(name) ? [undefined, 0] : [name.split(':')[0], Number(name.split(':')[1] ?? 0)];
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

/** What `ENGINE_DEVICE` leaves to the machine and to what a job asks for. */
export const isFreeChoice = (name: string): boolean => name === '' || name === 'auto';

/** The device that a trainer names as its own: `cuda:0`. */
export function deviceNamed(name: string, devices: readonly EngineDevice[] = listDevices()): EngineDevice {
  const found = devices.find((device) => `${device.kind}:${device.index}` === name);
  if (found === undefined) throw new Failure('internal', `the engine trains on ${name}, which it does not list`);
  return found;
}

/** One line for people: kind, architecture and size. */
export const describeDevice = (device: EngineDevice): string =>
  device.kind === 'cpu'
    ? `cpu (${device.isa}, ${device.threads} threads)`
    : `cuda:${device.index} (${device.name}, ${device.isa})`;
