export { createLogger, type Logger, type LoggerOptions } from './create-logger.ts';
export { describeError, type ErrorDescription } from './describe-error.ts';
