export { codeOfGrpcStatus, type ErrorCode, type ErrorRow, errorTable, isErrorCode } from './error-table.ts';
export { Failure, type FailureOptions, type FieldViolation, invalidField, notFound, unimplemented } from './failure.ts';
export { toFailure } from './to-failure.ts';
