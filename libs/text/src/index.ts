export { type ChannelText, createReasoningSplitter, type ReasoningSplitter } from './reasoning-splitter.ts';
export { type Role, type Row, type SlotName, type Slots, slotNames, type Turn } from './row.ts';
export {
  type EncodedSegments,
  encodeSegments,
  mergeRuns,
  type Segment,
  type SegmentKind,
  type TokenSpan,
  textOf,
} from './segment.ts';
export { createStopMatcher, type StopMatcher, type StopResult } from './stop-matcher.ts';
export {
  type RenderedPrompt,
  type ResolvedTemplate,
  resolveCanonicalTemplate,
  resolveTemplate,
  type TemplateSpec,
} from './template.ts';
export { builtinTemplates, type TextTemplate } from './text-template.ts';
export type { ReasoningMode } from './think.ts';
export { type EncodeOptions, loadTokenizer, type TextTokenizer } from './tokenizer.ts';
export type { AddedToken } from './tokenizer-file.ts';
