import { Failure } from '@medmesh/errors';
import { lifecycle } from '@medmesh/proto';

/** States of a job, as the proto numbers them. */
export const State = lifecycle.FineTuningJob_State;
export type State = lifecycle.FineTuningJob_State;

// From each state, the states it may change to. PENDING again from RUNNING is a crash, a preemption or a hand-back.
const next: Record<State, readonly State[]> = {
  [State.UNRECOGNIZED]: [],
  [State.UNSPECIFIED]: [State.QUEUED],
  [State.QUEUED]: [State.VALIDATING, State.PENDING, State.CANCELLED, State.FAILED],
  [State.VALIDATING]: [State.PENDING, State.CANCELLED, State.FAILED],
  [State.PENDING]: [State.RUNNING, State.PAUSED, State.CANCELLED, State.FAILED],
  [State.RUNNING]: [State.PENDING, State.PAUSING, State.CANCELLING, State.SUCCEEDED, State.FAILED],
  [State.PAUSING]: [State.PAUSED, State.PENDING, State.CANCELLING, State.SUCCEEDED, State.FAILED],
  [State.PAUSED]: [State.PENDING, State.CANCELLED, State.EXPIRED, State.FAILED],
  [State.CANCELLING]: [State.CANCELLED, State.FAILED],
  [State.CANCELLED]: [],
  [State.SUCCEEDED]: [],
  [State.FAILED]: [],
  [State.EXPIRED]: [],
};

/** The state's name without its prefix, e.g. `RUNNING`. */
export const stateName = (state: State): string => lifecycle.fineTuningJob_StateToJSON(state).replace(/^STATE_/, '');

/** Whether a job in this state never changes again. */
export const isTerminal = (state: State): boolean => next[state].length === 0 && state !== State.UNRECOGNIZED;

/** The job in its new state. Failure `failed_precondition` STATE_TRANSITION_NOT_ALLOWED if the state machine has no such edge. */
export function transition(
  job: lifecycle.FineTuningJob,
  to: State,
  changes: Partial<lifecycle.FineTuningJob> = {},
): lifecycle.FineTuningJob {
  if (!next[job.state].includes(to)) {
    throw new Failure(
      'failed_precondition',
      `${job.name} is ${stateName(job.state)}; it cannot become ${stateName(to)}`,
      {
        reason: 'STATE_TRANSITION_NOT_ALLOWED',
        metadata: { from: stateName(job.state), to: stateName(to) },
      },
    );
  }
  return { ...job, ...changes, state: to, updateTime: new Date() };
}
