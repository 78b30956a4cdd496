import type { inference } from '@medmesh/proto';

type Event = inference.GenerateEvent;

export const deltaOf = (event: Event | undefined): inference.Delta | undefined =>
  event?.event?.$case === 'delta' ? event.event.value : undefined;

/** Adds a delta to the one before it, in place, where both are of one choice and channel. False where they are not. */
export function join(before: Event, event: Event): boolean {
  const [first, second] = [deltaOf(before), deltaOf(event)];
  if (first === undefined || second === undefined) return false;
  if (first.choice !== second.choice || first.channel !== second.channel) return false;
  first.text += second.text;
  first.tokenIds.push(...second.tokenIds);
  first.logprobs.push(...second.logprobs);
  return true;
}
