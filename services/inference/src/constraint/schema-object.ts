/** A JSON schema that is no boolean. */
export type Schema = { readonly [keyword: string]: unknown };

export const isObject = (value: unknown): value is Schema =>
  typeof value === 'object' && value !== null && !Array.isArray(value);
