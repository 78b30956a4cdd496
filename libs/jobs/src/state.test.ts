import { lifecycle } from '@medmesh/proto';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { isTerminal, State, stateName, transition } from './state.ts';

const states = Object.values(State).filter((state) => state > 0);
const jobIn = (state: State) => lifecycle.FineTuningJob.fromPartial({ name: 'projects/p/fineTuningJobs/j', state });

function tryTransition(job: lifecycle.FineTuningJob, to: State): lifecycle.FineTuningJob | undefined {
  try {
    return transition(job, to);
  } catch {
    return undefined;
  }
}

test('a job reaches at most one terminal state, whatever is tried on it', () => {
  fc.assert(
    fc.property(fc.array(fc.constantFrom(...states), { maxLength: 60 }), (wishes) => {
      let job = jobIn(State.QUEUED);
      let terminals = 0;
      for (const to of wishes) {
        const next = tryTransition(job, to);
        if (next === undefined) continue;
        expect(isTerminal(job.state)).toBe(false);
        job = next;
        if (isTerminal(job.state)) terminals += 1;
      }
      expect(terminals).toBeLessThanOrEqual(1);
    }),
  );
});

test('from every state that is not terminal a terminal one can be reached', () => {
  for (const start of states.filter((state) => !isTerminal(state))) {
    const seen = new Set<State>([start]);
    const queue = [start];
    for (let state = queue.pop(); state !== undefined; state = queue.pop()) {
      for (const to of states) {
        if (!seen.has(to) && tryTransition(jobIn(state), to) !== undefined) {
          seen.add(to);
          queue.push(to);
        }
      }
    }
    expect([...seen].some(isTerminal), stateName(start)).toBe(true);
  }
});

test('a forbidden change says from where to where', () => {
  expect(() => transition(jobIn(State.SUCCEEDED), State.RUNNING)).toThrow('is SUCCEEDED; it cannot become RUNNING');
});
