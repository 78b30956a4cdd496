import { Help, type HelpConfiguration, type Option } from 'commander';

/** A default that tells a reader nothing: off, none, empty. */
const saysNothing = (value: unknown): boolean =>
  value === false || value === '' || (Array.isArray(value) && value.length === 0);

/** How --help is written everywhere. */
export const helpConfiguration: HelpConfiguration = {
  showGlobalOptions: true,
  optionDescription(option: Option): string {
    const shown =
      saysNothing(option.defaultValue) && option.defaultValueDescription === undefined
        ? Object.assign(Object.create(option) as Option, { defaultValue: undefined })
        : option;
    return new Help().optionDescription(shown);
  },
};
