import { Failure, invalidField } from '@medmesh/errors';

/** The variables of a pattern: `projects/{project}/models/{model}` → `'project' | 'model'`. */
export type NameVariables<Pattern extends string> = Pattern extends `${string}{${infer Variable}}${infer Rest}`
  ? Variable | NameVariables<Rest>
  : never;

export type NameParts<Pattern extends string> = Record<NameVariables<Pattern>, string>;

const longestSegment = 128;
// What every id of ours fits, and no more: no slash, no control character, no wildcard, nothing that means something in a path.
const segment = /^[A-Za-z0-9]([A-Za-z0-9._~-]*[A-Za-z0-9])?$/;

const resourceId = /^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$/;
const dottedResourceId = /^[a-z]([-a-z0-9.]{0,61}[a-z0-9])?$/;

/**
 * Splits a resource name by its pattern, e.g. `projects/{project}/models/{model}`. `field` is the request's field, for the error.
 * @throws Failure `invalid_argument` FIELD_INVALID saying which shape is expected.
 */
export function parseName<Pattern extends string>(pattern: Pattern, name: string, field = 'name'): NameParts<Pattern> {
  const expected = pattern.split('/');
  const seen = name.split('/');
  const parts: Record<string, string> = {};
  const fits =
    expected.length === seen.length &&
    expected.every((part, i) => {
      const text = seen[i]!;
      if (!part.startsWith('{')) return part === text;
      parts[part.slice(1, -1)] = text;
      return text.length <= longestSegment && segment.test(text);
    });
  if (!fits) throw invalidField(field, `${quote(name)} is not of the form ${pattern}`);
  return parts as NameParts<Pattern>;
}

/** The inverse of `parseName`. A part that could not be parsed back is a Failure `invalid_argument` naming the part. */
export function formatName<Pattern extends string>(pattern: Pattern, parts: NameParts<Pattern>): string {
  return pattern.replace(/\{([^}]*)\}/g, (_, variable: string) => {
    const text = (parts as Record<string, string | undefined>)[variable] ?? '';
    if (text.length > longestSegment || !segment.test(text))
      throw invalidField(variable, `${quote(text)} cannot be part of a name`);
    return text;
  });
}

/**
 * Checks an id that a user chose: 1 to 63 characters, a lowercase letter first, then lowercase letters, digits and `-` (with `dots`, also `.`).
 * @throws Failure `invalid_argument` FIELD_INVALID naming `field`.
 */
export function checkResourceId(id: string, field: string, o: { dots?: boolean } = {}): void {
  const allowed = o.dots === true ? dottedResourceId : resourceId;
  if (allowed.test(id) && !id.includes('..')) return;
  throw invalidField(field, `${quote(id)} is not an id; it must match ${allowed.source}`);
}

/** What was seen, shortened and without control characters: it goes into messages and logs. */
function quote(text: string): string {
  const shown = text.length > 80 ? `${text.slice(0, 80)}…` : text;
  return JSON.stringify(shown);
}

/** The etag of a record's revision. Opaque to callers. */
export function etagOf(revision: number): string {
  return `r${revision.toString(36)}`;
}

/** Compares the etag of a request with the record's revision. An empty etag asks for no check. Failure `aborted` ETAG_MISMATCH. */
export function checkEtag(etag: string, revision: number): void {
  if (etag === '' || etag === etagOf(revision)) return;
  throw etagMismatch();
}

export function etagMismatch(cause?: unknown): Failure {
  return new Failure(
    'aborted',
    'the resource was changed by somebody else meanwhile; read it again and repeat the change',
    {
      reason: 'ETAG_MISMATCH',
      cause,
    },
  );
}
