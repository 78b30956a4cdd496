/** What the TLS library says when two sides do not accept each other, and what that means. */
const refusals: readonly [RegExp, string][] = [
  [
    /alert certificate required|peer did not return a certificate/i,
    'the server asks for a client certificate and was shown none',
  ],
  [
    /alert (unknown ca|bad certificate|certificate unknown|certificate expired|certificate revoked|unsupported certificate)/i,
    'the server does not accept this client’s certificate',
  ],
  [
    /self[- ]signed certificate|unable to verify the first certificate|unable to get (local )?issuer certificate/i,
    'the server’s certificate is of no authority that this client trusts; name its authority',
  ],
  [/certificate has expired/i, 'the server’s certificate has expired'],
  [
    /does not match certificate'?s altnames|Hostname\/IP does not match/i,
    'the server’s certificate is for another name',
  ],
  [/wrong version number|packet length too long/i, 'the server speaks no TLS'],
];

/** The refusal in a connection's last error, in words; undefined where it is something else. */
export const explainTlsRefusal = (message: string): string | undefined =>
  refusals.find(([pattern]) => pattern.test(message))?.[1];
