export { commonConfig } from './common-config.ts';
export { ConfigError, type ConfigFault } from './config-error.ts';
export { engineConfig } from './engine-config.ts';
export { type Environment, loadConfig } from './load-config.ts';
export { type ConfigVariable, configVariables, describeConfig, isSecretName } from './variables.ts';
