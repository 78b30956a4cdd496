import { accessSync, constants } from 'node:fs';
import { delimiter, join } from 'node:path';
import { Failure } from '@medmesh/errors';

/** Where nats-server is: in the project's own folder, else in a folder of the PATH. Throws failed_precondition when it is in neither. */
export function natsProgram(ownFolder: string, path = ''): string {
  const folders = [ownFolder, ...path.split(delimiter).filter((folder) => folder !== '')];
  const found = folders.map((folder) => join(folder, 'nats-server')).find(isExecutable);
  if (found !== undefined) return found;
  throw new Failure(
    'failed_precondition',
    `nats-server is neither in ${ownFolder} nor on the PATH; run 'sh scripts/setup.sh', or install it`,
    { reason: 'NATS_SERVER_MISSING' },
  );
}

function isExecutable(file: string): boolean {
  try {
    accessSync(file, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}
