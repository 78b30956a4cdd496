import { conditions } from './conditions.ts';
import { drugs } from './drugs.ts';

/** The languages of the demo. */
export type Language = 'en' | 'zh';

/** Both languages, in the order in which everything is generated. */
export const languages: readonly Language[] = ['en', 'zh'];

/**
 * What a fact says about its subject. `diagnosis` turns `sign` round: its subject is the sign, its value the condition.
 * The last three belong to drugs.
 */
export type Relation =
  | 'sign'
  | 'cause'
  | 'test'
  | 'firstStep'
  | 'complication'
  | 'diagnosis'
  | 'group'
  | 'use'
  | 'risk';

/** One fact in one language: the `relation` of `subject` is `value`. `id` is `<condition or drug>/<relation>`. */
export type Fact = {
  readonly id: string;
  readonly language: Language;
  readonly relation: Relation;
  readonly subject: string;
  readonly value: string;
  /** The sign that leads to the subject; only on facts about a condition other than its sign or diagnosis. */
  readonly sign: string | null;
};

/** All facts about one condition or drug in one language, as an article needs them. */
export type Topic = { readonly id: string; readonly language: Language; readonly facts: readonly Fact[] };

function conditionTopic(language: Language, entry: (typeof conditions)[number]): Topic {
  const [name, sign, cause, test, firstStep, complication] = entry[language];
  const about = (relation: Relation, value: string, viaSign: string | null): Fact => ({
    id: `${entry.id}/${relation}`,
    language,
    relation,
    subject: name,
    value,
    sign: viaSign,
  });
  return {
    id: entry.id,
    language,
    facts: [
      about('sign', sign, null),
      about('cause', cause, sign),
      about('test', test, sign),
      about('firstStep', firstStep, sign),
      about('complication', complication, sign),
      { id: `${entry.id}/diagnosis`, language, relation: 'diagnosis', subject: sign, value: name, sign: null },
    ],
  };
}

function drugTopic(language: Language, entry: (typeof drugs)[number]): Topic {
  const [subject, group, use, risk] = entry[language];
  const about = (relation: Relation, value: string): Fact => ({
    id: `${entry.id}/${relation}`,
    language,
    relation,
    subject,
    value,
    sign: null,
  });
  return { id: entry.id, language, facts: [about('group', group), about('use', use), about('risk', risk)] };
}

/** Every condition, then every drug, in `language`. */
export function topicsIn(language: Language): readonly Topic[] {
  return [
    ...conditions.map((entry) => conditionTopic(language, entry)),
    ...drugs.map((entry) => drugTopic(language, entry)),
  ];
}

/** Every fact in `language`, topic by topic. */
export function factsIn(language: Language): readonly Fact[] {
  return topicsIn(language).flatMap((topic) => topic.facts);
}
