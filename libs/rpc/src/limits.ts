/** Largest message either side sends or accepts. Larger things (weights, datasets) go through the object store. */
export const maxMessageBytes = 16 * 1024 * 1024;

/** gRPC options both ends set alike. */
export const messageLimits = {
  'grpc.max_receive_message_length': maxMessageBytes,
  'grpc.max_send_message_length': maxMessageBytes,
} as const;
