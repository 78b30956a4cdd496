import { configVariables } from '@medmesh/config';
import { configSchema as formatter } from '../../services/formatter/src/config.ts';
import { configSchema as gateway } from '../../services/gateway/src/config.ts';
import { configSchema as inference } from '../../services/inference/src/config.ts';
import { configSchema as lifecycle } from '../../services/lifecycle/src/config.ts';
import { configSchema as quantizer } from '../../services/quantizer/src/config.ts';
import { configSchema as trainer } from '../../services/trainer/src/config.ts';
import { readText, type ServiceName } from './manifests.ts';

/** What each service's process is configured by. */
export const schemas: Record<ServiceName, Parameters<typeof configVariables>[0]> = {
  gateway,
  lifecycle,
  formatter,
  quantizer,
  trainer,
  inference,
};

/** What the telemetry reads before the service begins. */
const telemetry = [...readText('libs/telemetry/src/start-telemetry.ts').matchAll(/env\['(OTEL_\w+)'\]/g)].map(
  ([, name]) => name ?? '',
);

/** Every variable that a service reads. */
export function variablesOf(service: ServiceName): Set<string> {
  const own = configVariables(schemas[service]);
  return new Set([...own.flatMap(({ name, secret }) => (secret ? [name, `${name}_FILE`] : [name])), ...telemetry]);
}
