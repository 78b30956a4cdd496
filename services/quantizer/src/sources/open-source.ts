import { Failure, invalidField } from '@medmesh/errors';
import type { QuantizerDeps } from '../deps.ts';
import { openFolder } from './folder.ts';
import { openHuggingFace } from './hugging-face.ts';
import { openModelScope } from './model-scope.ts';
import type { ModelSource } from './model-source.ts';

const hubUri = /^(hf|modelscope):\/\/([A-Za-z0-9][\w.-]{0,95}\/[A-Za-z0-9][\w.-]{0,95})$/;

/** Checks the form of an import's URI without contacting anything. */
export function checkImportUri(uri: string): void {
  if (hubUri.test(uri) || /^(file:\/\/\/.|s3:\/\/[a-z0-9])/.test(uri)) return;
  throw invalidField('uri', 'use file:///folder, s3://bucket/prefix, hf://owner/name or modelscope://owner/name');
}

/** The hub's address and whether the token may go there. A request may only name addresses that the operator allows. */
export function chooseHub(config: QuantizerDeps['config'], kind: 'hf' | 'modelscope', asked: string): { url: string; token: string | undefined } {
  const own = kind === 'hf' ? config.HUGGING_FACE_URL : config.MODELSCOPE_URL;
  if (asked === '' || asked === own) return { url: own, token: config.HUB_TOKEN };
  if (!config.HUB_URLS_ALLOWED.split(',').includes(asked)) {
    throw new Failure('permission_denied', 'this server does not import from that hub_url; its operator allows addresses by HUB_URLS_ALLOWED', { reason: 'HUB_NOT_ALLOWED' });
  }
  return { url: asked, token: undefined };
}

/** Opens what an import names. Only a hub URI leads outside. */
export function openSource(deps: QuantizerDeps, request: { uri: string; revision: string; hubUrl: string }, signal: AbortSignal): Promise<ModelSource> {
  checkImportUri(request.uri);
  const match = hubUri.exec(request.uri);
  if (match === null) return openFolder(deps.store, request.uri, signal);
  const [, scheme, repo = ''] = match;
  const kind = scheme === 'hf' ? 'hf' : 'modelscope';
  const { url, token } = chooseHub(deps.config, kind, request.hubUrl);
  return (kind === 'hf' ? openHuggingFace : openModelScope)(url, repo, request.revision, { token, signal });
}
