/** Thrown by a handler to hand its work back: it is delivered again after `delayMs`, and this does not count as a failed attempt. */
export class Requeue extends Error {
  readonly delayMs: number;

  constructor(delayMs = 0) {
    super(`handed back for ${delayMs} ms`);
    this.name = 'Requeue';
    this.delayMs = delayMs;
  }
}
