import { createHash } from 'node:crypto';
import { Failure } from '@medmesh/errors';
import { compileChatTemplate, type JinjaChatTemplate } from './chat-template.ts';
import type { Row, Slots, Turn } from './row.ts';
import type { Segment } from './segment.ts';
import { builtinTemplates, compileTextTemplate, type TextTemplate } from './text-template.ts';
import type { ReasoningMode } from './think.ts';
import type { TextTokenizer } from './tokenizer.ts';

/** Which template to use, as `medmesh.dataset.v1.TemplateSpec` carries it. Default: builtin `medical-reasoning`. */
export type TemplateSpec = {
  readonly template?:
    | { readonly $case: 'builtin'; readonly value: string }
    | { readonly $case: 'chat'; readonly value: { readonly system: string } }
    | { readonly $case: 'custom'; readonly value: { readonly prompt: string; readonly completion: string } }
    | undefined;
};

/** A prompt as it is served. */
export type RenderedPrompt = {
  readonly segments: readonly Segment[];
  /** Whether the model begins to write inside `<think>`. */
  readonly startsInsideThink: boolean;
};

/** What every kind of template can do. */
export type TemplateRenderer = {
  /** The added token that ends a completion; serving must stop at it. */
  readonly endToken: string;
  /** The whole training example, end token included. A row the template cannot hold is `invalid_argument`. */
  renderExample(row: Row): Segment[];
  /** What the model is given when it is asked. */
  renderPrompt(input: Slots | readonly Turn[], mode: ReasoningMode): RenderedPrompt;
};

/** A template bound to a tokenizer. */
export type ResolvedTemplate = Omit<TemplateRenderer, 'renderPrompt'> & {
  /** `sha256:<hex>` of `canonical`: the template's identity in a dataset version and in an adapter. */
  readonly digest: string;
  /** All that decides the rendered text, as JSON with sorted keys. */
  readonly canonical: string;
  readonly kind: 'text' | 'chat';
  /** Ids that end a generation under this template: its end token and the tokenizer's stop ids. */
  readonly stopTokenIds: readonly number[];
  renderPrompt(input: Slots | readonly Turn[], options?: { readonly reasoning?: ReasoningMode }): RenderedPrompt;
};

/** Largest accepted template text, in characters. */
const maxTemplateLength = 256 * 2 ** 10;

/** Resolves a spec against a tokenizer. Faults are `invalid_argument`; a model without a chat template `failed_precondition`. */
export function resolveTemplate(spec: TemplateSpec | undefined, tokenizer: TextTokenizer): ResolvedTemplate {
  return bind(describe(spec?.template ?? { $case: 'builtin', value: 'medical-reasoning' }, tokenizer), tokenizer);
}

/** Brings back the template that a dataset version or an adapter was made with, from its stored `canonical` text. */
export function resolveCanonicalTemplate(canonical: string, tokenizer: TextTokenizer): ResolvedTemplate {
  let template: unknown;
  try {
    template = JSON.parse(canonical);
  } catch (cause) {
    throw new Failure('invalid_argument', 'the stored template is not JSON', { reason: 'TEMPLATE_INVALID', cause });
  }
  return bind(checkDescription(template), tokenizer);
}

function describe(
  template: NonNullable<TemplateSpec['template']>,
  tokenizer: TextTokenizer,
): TextTemplate | JinjaChatTemplate {
  switch (template.$case) {
    case 'builtin': {
      const found = builtinTemplates.get(template.value === '' ? 'medical-reasoning' : template.value);
      if (found !== undefined) return found;
      const names = [...builtinTemplates.keys()].join(', ');
      throw new Failure(
        'invalid_argument',
        `no builtin template is called '${template.value.slice(0, 60)}'; there are ${names}`,
        {
          reason: 'TEMPLATE_INVALID',
          fields: [{ field: 'template.builtin', description: `one of ${names}` }],
        },
      );
    }
    case 'custom': {
      const { prompt, completion } = template.value;
      checkLength('template.custom.prompt', prompt);
      checkLength('template.custom.completion', completion);
      return { kind: 'text', name: 'custom', prompt, completion };
    }
    case 'chat': {
      if (tokenizer.chatTemplate === undefined) {
        throw new Failure(
          'failed_precondition',
          "the model's tokenizer came without a chat template; use a builtin or a custom template",
          { reason: 'CHAT_TEMPLATE_MISSING' },
        );
      }
      checkLength('template.chat.system', template.value.system);
      return {
        kind: 'chat',
        source: tokenizer.chatTemplate,
        system: template.value.system,
        bosToken: tokenizer.bosToken ?? '',
        eosToken: tokenizer.eosToken,
      };
    }
  }
}

function bind(template: TextTemplate | JinjaChatTemplate, tokenizer: TextTokenizer): ResolvedTemplate {
  const canonical = JSON.stringify(template, Object.keys(template).sort());
  const renderer =
    template.kind === 'chat' ? compileChatTemplate(template, tokenizer) : compileTextTemplate(template, tokenizer);
  const end = tokenizer.addedTokenId(renderer.endToken);
  return {
    digest: `sha256:${createHash('sha256').update(canonical, 'utf8').digest('hex')}`,
    canonical,
    kind: template.kind,
    endToken: renderer.endToken,
    stopTokenIds: [...new Set([...(end === undefined ? [] : [end]), ...tokenizer.stopTokenIds])],
    renderExample: (row) => renderer.renderExample(row),
    renderPrompt: (input, o = {}) => renderer.renderPrompt(input, o.reasoning ?? 'auto'),
  };
}

function checkDescription(value: unknown): TextTemplate | JinjaChatTemplate {
  const fields = { text: ['name', 'prompt', 'completion'], chat: ['source', 'system', 'bosToken', 'eosToken'] };
  const optional = ['promptWithoutInput', 'completionWithoutReasoning'];
  if (
    typeof value === 'object' &&
    value !== null &&
    'kind' in value &&
    (value.kind === 'text' || value.kind === 'chat')
  ) {
    const entries = new Map<string, unknown>(Object.entries(value));
    const complete = fields[value.kind].every((f) => typeof entries.get(f) === 'string');
    const sound = optional.every((f) => ['string', 'undefined'].includes(typeof entries.get(f)));
    const short = [...entries.values()].every((v) => typeof v === 'string' && v.length <= maxTemplateLength);
    if (complete && sound && short) return value as TextTemplate | JinjaChatTemplate;
  }
  throw new Failure('invalid_argument', 'the stored template is not one that medmesh wrote', {
    reason: 'TEMPLATE_INVALID',
  });
}

function checkLength(field: string, text: string): void {
  if (text.length <= maxTemplateLength) return;
  const description = `has ${text.length} characters; at most ${maxTemplateLength} are accepted`;
  throw new Failure('invalid_argument', `${field}: ${description}`, {
    reason: 'TEMPLATE_INVALID',
    fields: [{ field, description }],
  });
}
