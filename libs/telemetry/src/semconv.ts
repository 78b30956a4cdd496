/**
 * The names of attributes and metrics, from OpenTelemetry's semantic conventions where they have one. The gen_ai and
 * messaging names are still in development there: this file is the only place to follow a change.
 */
import {
  ATTR_ERROR_TYPE,
  ATTR_RPC_METHOD,
  ATTR_RPC_SYSTEM_NAME,
  ATTR_SERVER_ADDRESS,
  ATTR_SERVER_PORT,
  ATTR_SERVICE_NAME,
  ATTR_SERVICE_NAMESPACE,
} from '@opentelemetry/semantic-conventions';
import {
  ATTR_GEN_AI_OPERATION_NAME,
  ATTR_GEN_AI_REQUEST_MAX_TOKENS,
  ATTR_GEN_AI_REQUEST_MODEL,
  ATTR_GEN_AI_RESPONSE_FINISH_REASONS,
  ATTR_GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK,
  ATTR_GEN_AI_USAGE_INPUT_TOKENS,
  ATTR_GEN_AI_USAGE_OUTPUT_TOKENS,
  ATTR_MESSAGING_CONSUMER_GROUP_NAME,
  ATTR_MESSAGING_DESTINATION_NAME,
  ATTR_MESSAGING_MESSAGE_ID,
  ATTR_MESSAGING_OPERATION_NAME,
  ATTR_MESSAGING_OPERATION_TYPE,
  ATTR_MESSAGING_SYSTEM,
  ATTR_PROCESS_PID,
  ATTR_RPC_RESPONSE_STATUS_CODE,
} from '@opentelemetry/semantic-conventions/incubating';

/** Attributes of spans. */
export const attribute = {
  serviceName: ATTR_SERVICE_NAME,
  serviceNamespace: ATTR_SERVICE_NAMESPACE,
  processPid: ATTR_PROCESS_PID,
  errorType: ATTR_ERROR_TYPE,
  serverAddress: ATTR_SERVER_ADDRESS,
  serverPort: ATTR_SERVER_PORT,

  rpcSystemName: ATTR_RPC_SYSTEM_NAME,
  /** `package.Service/Method`. */
  rpcMethod: ATTR_RPC_METHOD,
  /** The status by name: `OK`, `NOT_FOUND`. */
  rpcResponseStatusCode: ATTR_RPC_RESPONSE_STATUS_CODE,

  /** `nats`. */
  messagingSystem: ATTR_MESSAGING_SYSTEM,
  messagingDestinationName: ATTR_MESSAGING_DESTINATION_NAME,
  messagingOperationName: ATTR_MESSAGING_OPERATION_NAME,
  /** `send` or `process`. */
  messagingOperationType: ATTR_MESSAGING_OPERATION_TYPE,
  messagingMessageId: ATTR_MESSAGING_MESSAGE_ID,
  messagingConsumerGroupName: ATTR_MESSAGING_CONSUMER_GROUP_NAME,

  genAiOperationName: ATTR_GEN_AI_OPERATION_NAME,
  genAiRequestModel: ATTR_GEN_AI_REQUEST_MODEL,
  genAiRequestMaxTokens: ATTR_GEN_AI_REQUEST_MAX_TOKENS,
  genAiUsageInputTokens: ATTR_GEN_AI_USAGE_INPUT_TOKENS,
  genAiUsageOutputTokens: ATTR_GEN_AI_USAGE_OUTPUT_TOKENS,
  genAiResponseFinishReasons: ATTR_GEN_AI_RESPONSE_FINISH_REASONS,
  genAiResponseTimeToFirstChunk: ATTR_GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK,
  genAiProviderName: 'gen_ai.provider.name',
  genAiRequestTemperature: 'gen_ai.request.temperature',
  genAiRequestTopP: 'gen_ai.request.top_p',
  genAiRequestTopK: 'gen_ai.request.top_k',
  genAiRequestSeed: 'gen_ai.request.seed',
  genAiRequestChoiceCount: 'gen_ai.request.choice.count',
  genAiResponseId: 'gen_ai.response.id',
  genAiResponseModel: 'gen_ai.response.model',
  genAiUsageReasoningTokens: 'gen_ai.usage.reasoning.output_tokens',
  genAiUsageCachedTokens: 'gen_ai.usage.cache_read.input_tokens',

  jobId: 'medmesh.job.id',
  jobAttempt: 'medmesh.job.attempt',
  operationName: 'medmesh.operation.name',
} as const;

/** Metrics shared by more than one process, as Prometheus writes them: dots become underscores, the unit ends the name. */
export const metric = {
  /** rpc.server.call.duration */
  rpcServerCallDuration: 'rpc_server_call_duration_seconds',
  /** rpc.client.call.duration */
  rpcClientCallDuration: 'rpc_client_call_duration_seconds',
  /** messaging.process.duration */
  messagingProcessDuration: 'messaging_process_duration_seconds',
  /** messaging.client.sent.messages */
  messagingSentMessages: 'messaging_client_sent_messages_total',
  /** messaging.client.consumed.messages */
  messagingConsumedMessages: 'messaging_client_consumed_messages_total',
  /** gen_ai.server.request.duration */
  genAiRequestDuration: 'gen_ai_server_request_duration_seconds',
  /** gen_ai.server.time_to_first_token */
  genAiTimeToFirstToken: 'gen_ai_server_time_to_first_token_seconds',
  /** gen_ai.server.time_per_output_token */
  genAiTimePerOutputToken: 'gen_ai_server_time_per_output_token_seconds',
  /** gen_ai.client.token.usage */
  genAiTokenUsage: 'gen_ai_client_token_usage_tokens',
} as const;

/** Upper bounds in seconds, as the RPC conventions give them, and longer ones for streams that last as long as a job. */
export const callDurationBuckets: number[] = [
  0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60, 300, 1800,
];
