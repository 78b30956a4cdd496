/** Kinds of operations that one service starts and another does. */
export const operationKinds = {
  /** Asked of lifecycle, which has the adapters; done by the quantizer, which has the engine. */
  verifyExport: 'adapter.verify-export',
} as const;
