import { Environment, Interpreter, parse, tokenize } from '@huggingface/jinja';
import { Failure } from '@medmesh/errors';

/** A chat template may loop over so many numbers in one rendering; published ones use none or a handful. */
const maxRangeItems = 10_000;

/** Raised by a template's own `raise_exception`, with the template's words. */
class TemplateRefusal extends Error {}

/** Compiles a Jinja source into a function of its variables. The source comes from a model's files: it is not trusted. */
export function compileJinja(source: string): (variables: Record<string, unknown>) => string {
  const program = guarded(
    () => parse(tokenize(source, { lstrip_blocks: true, trim_blocks: true })),
    'cannot be parsed',
  );
  return (variables) => {
    const env = new Environment();
    let left = maxRangeItems;
    const globals = {
      true: true,
      false: false,
      none: null,
      True: true,
      False: false,
      None: null,
      raise_exception: (message: unknown) => {
        throw new TemplateRefusal(String(message).slice(0, 200));
      },
      range: (first: number, second?: number, step = 1) => {
        const [start, stop] = second === undefined ? [0, first] : [first, second];
        const count = Math.max(0, Math.ceil((stop - start) / step));
        left -= count;
        if (!(left >= 0)) throw new TemplateRefusal(`it loops over more than ${maxRangeItems} numbers`);
        return Array.from({ length: count }, (_, i) => start + i * step);
      },
      // `strftime_now` is left out on purpose: a prompt must not depend on the day. Published templates that use it
      // ask whether it is defined and fall back to a fixed date.
    };
    for (const [name, value] of Object.entries({ ...globals, ...variables })) env.set(name, value);
    return guarded(() => String(new Interpreter(env).run(program).value), 'fails');
  };
}

function guarded<T>(run: () => T, what: string): T {
  try {
    return run();
  } catch (cause) {
    const words = cause instanceof Error ? cause.message.slice(0, 200) : 'unknown error';
    const said = cause instanceof TemplateRefusal ? 'refuses this conversation' : what;
    throw new Failure('invalid_argument', `the model's chat template ${said}: ${words}`, {
      reason: 'CHAT_TEMPLATE_INVALID',
      cause,
    });
  }
}
