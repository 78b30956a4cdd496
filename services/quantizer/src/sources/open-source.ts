import { Failure, invalidField } from '@medmesh/errors';
import type { QuantizerConfig } from '../config.ts';
import type { QuantizerDeps } from '../deps.ts';
import { openFolder } from './folder.ts';
import { openHuggingFace } from './hugging-face.ts';
import { openModelScope } from './model-scope.ts';
import type { ModelSource } from './model-source.ts';

/** The parts of an import that say where from. */
export type Origin = { uri: string; revision: string; hubUrl: string };

const hubUri = /^(hf|modelscope):\/\/([A-Za-z0-9][\w.-]{0,95}\/[A-Za-z0-9][\w.-]{0,95})$/;
const revisionForm = /^[\w.][\w./-]{0,199}$/;

type Place = { kind: 'folder' } | { kind: 'hf' | 'modelscope'; repo: string };

function placeOf({ uri, revision, hubUrl }: Origin): Place {
  const [, scheme, repo] = hubUri.exec(uri) ?? [];
  if (repo === undefined) {
    if (!/^(file:\/\/\/.|s3:\/\/[a-z0-9])/.test(uri)) {
      throw invalidField('uri', 'use file:///folder, s3://bucket/prefix, hf://owner/name or modelscope://owner/name');
    }
    if (revision !== '') throw invalidField('revision', 'folders have none; leave it empty, or import from a hub');
    if (hubUrl !== '') throw invalidField('hub_url', 'this URI names no hub; leave it empty');
    return { kind: 'folder' };
  }
  if (revision !== '' && (!revisionForm.test(revision) || revision.includes('..'))) {
    throw invalidField(
      'revision',
      'use a branch, tag or commit of letters, digits and . _ - /, at most 200 characters',
    );
  }
  return { kind: scheme === 'hf' ? 'hf' : 'modelscope', repo };
}

const plain = (url: string) => url.replace(/\/+$/, '');

/** The hub's address and the token that may go there. A request may only name addresses that the operator allows. */
export function chooseHub(
  config: QuantizerConfig,
  kind: 'hf' | 'modelscope',
  asked: string,
): { url: string; token: string | undefined } {
  const own = plain(kind === 'hf' ? config.HUGGING_FACE_URL : config.MODELSCOPE_URL);
  if (asked === '' || plain(asked) === own)
    return { url: own, token: kind === 'hf' ? config.HUGGING_FACE_TOKEN : config.MODELSCOPE_TOKEN };
  const allowed = config.HUB_URLS_ALLOWED.split(',')
    .filter((url) => url !== '')
    .map(plain);
  if (!allowed.includes(plain(asked))) {
    throw new Failure(
      'permission_denied',
      'this server does not import from that hub_url; its operator allows addresses by HUB_URLS_ALLOWED',
      {
        reason: 'HUB_NOT_ALLOWED',
      },
    );
  }
  return { url: plain(asked), token: undefined };
}

/** Checks form and permission of an import's origin without contacting anything. */
export function checkOrigin(config: QuantizerConfig, origin: Origin): void {
  const place = placeOf(origin);
  if (place.kind !== 'folder') chooseHub(config, place.kind, origin.hubUrl);
}

/** Headers that carry a token. ModelScope's older addresses read it from the session cookie, its newer ones from Authorization. */
function credentialsOf(kind: 'hf' | 'modelscope', token: string | undefined): Record<string, string> {
  if (token === undefined) return {};
  const authorization = { authorization: `Bearer ${token}` };
  return kind === 'hf' ? authorization : { ...authorization, cookie: `m_session_id=${token}` };
}

/** Opens what an import names. Only a hub URI leads outside. */
export async function openSource(
  deps: Pick<QuantizerDeps, 'config' | 'store'>,
  origin: Origin,
  signal: AbortSignal,
): Promise<ModelSource> {
  const place = placeOf(origin);
  if (place.kind === 'folder') return openFolder(deps.store, origin.uri, signal);
  const { url, token } = chooseHub(deps.config, place.kind, origin.hubUrl);
  const open = place.kind === 'hf' ? openHuggingFace : openModelScope;
  return open(url, place.repo, origin.revision, { credentials: credentialsOf(place.kind, token), signal });
}
