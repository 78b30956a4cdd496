// A process for tests: materializes a manifest and says so, then ends or stays. Arguments: store URL, access key, secret key, cache folder, most bytes, digest, end|stay.
import { readdirSync } from 'node:fs';
import { openCache, openObjectStore } from '../src/index.ts';

const [url, accessKey, secretKey, dir, maxBytes, digest, then] = process.argv.slice(2) as [
  string,
  string,
  string,
  string,
  string,
  string,
  string,
];
const store = await openObjectStore({ url, accessKey, secretKey });
const cache = openCache({ dir, maxBytes: Number(maxBytes), store });
const { dir: view } = await cache.materialize(await store.getManifest(digest));
process.stdout.write(`materialized ${readdirSync(view).sort().join(',')} in ${view}\n`);
if (then === 'stay') setInterval(() => undefined, 1000);
else await cache.close();
