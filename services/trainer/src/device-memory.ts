import { type EngineDevice, usedDeviceMemory } from '@medmesh/engine';

/**
 * Follows how much of a GPU's memory is in use, beside the steps: asking gives the newest reading there is and begins the next one, so nobody waits for
 * the driver. 0 on a CPU, before the first reading has come, and where the driver does not tell.
 */
export function watchDeviceMemory(
  device: EngineDevice,
  read: (device: EngineDevice) => Promise<number> = usedDeviceMemory,
): () => number {
  if (device.kind !== 'cuda') return () => 0;
  let latest = 0;
  let reading = false;
  const refresh = () => {
    if (reading) return;
    reading = true;
    void read(device)
      .then(
        (bytes) => {
          latest = bytes;
        },
        () => undefined,
      )
      .finally(() => {
        reading = false;
      });
  };
  refresh();
  return () => {
    refresh();
    return latest;
  };
}
