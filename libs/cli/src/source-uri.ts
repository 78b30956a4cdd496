import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';

/** A folder or address as a URI; a bare path is a folder on this machine. */
export const toUri = (source: string): string =>
  /^[a-z0-9]+:\/\//.test(source) ? source : pathToFileURL(resolve(source)).href;
