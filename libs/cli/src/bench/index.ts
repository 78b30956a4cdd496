export { type SoakOptions, type SoakReport, type SoakSample, soak } from './soak.ts';
export type { SoakCaller, SoakModel } from './soak-requests.ts';
