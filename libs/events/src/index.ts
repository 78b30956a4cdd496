export { answerTimeoutMs, isBrokerAway, pause, untilBrokerAnswers } from './broker.ts';
export { type ConnectOptions, connectNats } from './connect.ts';
export { type ReadStreamOptions, readStream } from './read-stream.ts';
export { subjects, type WorkKind } from './subjects.ts';
export { decodeToken, encodeToken } from './tokens.ts';
