import type { Command } from 'commander';

/** Every command path with its flags, e.g. `model import` → `--id --revision`. */
function commandPaths(command: Command, path: string[] = []): { path: string; words: string[] }[] {
  const children = command.commands.filter((child) => child.name() !== 'help');
  const flags = command.options.flatMap((option) =>
    option.long === undefined || option.long === null ? [] : [option.long],
  );
  return [
    { path: path.join(' '), words: [...children.map((child) => child.name()), ...flags] },
    ...children.flatMap((child) => commandPaths(child, [...path, child.name()])),
  ];
}

/** A completion script for bash or zsh, made of the commands as they are. */
export function completionScript(program: Command, shell: string): string {
  const cases = commandPaths(program)
    .map(({ path, words }) => `    "${path}") words="${words.join(' ')} --help --json" ;;`)
    .join('\n');
  const bash = `_medmesh() {
  local current="\${COMP_WORDS[COMP_CWORD]}" path="" word words=""
  for word in "\${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    case "$word" in -*) break ;; *) path="\${path:+$path }$word" ;; esac
  done
  while :; do
    case "$path" in
${cases}
    esac
    [ -n "$words" ] || [ -z "$path" ] && break
    case "$path" in *" "*) path="\${path% *}" ;; *) path="" ;; esac
  done
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o default -F _medmesh medmesh ./medmesh
`;
  return shell === 'zsh' ? `autoload -U +X bashcompinit && bashcompinit\n${bash}` : bash;
}
