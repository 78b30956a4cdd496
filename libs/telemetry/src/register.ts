/**
 * Started by `node --import @medmesh/telemetry/register main.ts`, before any other module loads.
 *
 * Why not from main.ts: @opentelemetry/api ships as two builds, and a CommonJS library that asked for its tracer while
 * the ES modules were still loading would hold one that records nothing, for ever and without an error.
 */
import { startTelemetry } from './start-telemetry.ts';

startTelemetry(process.env);
