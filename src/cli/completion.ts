// SPDX-License-Identifier: Apache-2.0
/**
 * `completion bash|zsh`: scripts made from the table.
 *
 * @module
 */
import { EXIT, UsageError } from "./exit.ts";
import {
  type Args,
  type CommandName,
  commandNames,
  type CommandSpec,
  commandSpec,
  type OptionSpec,
  type PositionalSpec,
  type ValueOptionSpec,
} from "./table.ts";

/** Everything that may follow a `-`. */
function optionWords(spec: CommandSpec): string[] {
  return [
    "--help",
    ...Object.values(spec.options).flatMap((o) => o.names),
  ];
}

function choices(spec: CommandSpec, name: CommandName): readonly string[] {
  if (name === "help") return commandNames();
  return Object.values(spec.positionals).flatMap((p) => p.choices ?? []);
}

/** Options whose value is one of a few, or a file. */
function valued(spec: CommandSpec): ValueOptionSpec[] {
  return Object.values(spec.options)
    .filter((o): o is ValueOptionSpec => o.kind !== "flag");
}

function bashCase(name: CommandName): string {
  const spec = commandSpec(name);
  const values = valued(spec).map((option) => {
    const words = option.choices !== undefined
      ? `COMPREPLY=($(compgen -W "${option.choices.join(" ")}" -- "$cur"))`
      : option.kind === "file" || option.kind === "path"
      ? `COMPREPLY=($(compgen -f -- "$cur"))`
      : "COMPREPLY=()";
    return `      ${option.names.join("|")}) ${words}; return ;;`;
  });
  const plain = choices(spec, name);
  return [
    `  ${name})`,
    ...values.length === 0 ? [] : [
      `    case $prev in`,
      ...values,
      `    esac`,
    ],
    `    words="${optionWords(spec).join(" ")}"`,
    `    plain="${plain.join(" ")}"`,
    `    ;;`,
  ].join("\n");
}

/** Completion for bash 4 or later. */
export function bashScript(): string {
  const programs = commandNames().flatMap((name) =>
    commandSpec(name).original ?? []
  );
  return `# overlaybd completion for bash; generated from the command table
_overlaybd() {
  local cur=\${COMP_WORDS[COMP_CWORD]} prev=\${COMP_WORDS[COMP_CWORD-1]}
  local command words plain
  COMPREPLY=()
  case \${COMP_WORDS[0]##*/} in
  overlaybd)
    if [ "$COMP_CWORD" -eq 1 ]; then
      COMPREPLY=($(compgen -W "${
    commandNames().join(" ")
  } --help --version" -- "$cur"))
      return
    fi
    command=\${COMP_WORDS[1]}
    ;;
  *) command=\${COMP_WORDS[0]##*/overlaybd-}; command=\${command#overlaybd-} ;;
  esac
  case $command in
${commandNames().map(bashCase).join("\n")}
  *) return ;;
  esac
  case $cur in
  -*) COMPREPLY=($(compgen -W "$words" -- "$cur")) ;;
  *)
    if [ -n "$plain" ]; then
      COMPREPLY=($(compgen -W "$plain" -- "$cur"))
    else
      COMPREPLY=($(compgen -f -- "$cur"))
    fi
    ;;
  esac
}
complete -o filenames -F _overlaybd overlaybd ${programs.join(" ")}
`;
}

/** Text inside an _arguments description. */
function zshText(text: string): string {
  return text.replace(/[[\]:\\]/g, "\\$&").replaceAll("'", "'\\''");
}

function zshValue(spec: PositionalSpec | ValueOptionSpec): string {
  if (spec.choices !== undefined) return `(${spec.choices.join(" ")})`;
  return spec.kind === "file" || spec.kind === "path" || "many" in spec
    ? "_files"
    : " ";
}

function zshOption(option: OptionSpec): string[] {
  const help = zshText(option.help);
  return option.names.map((name) =>
    option.kind === "flag"
      ? `'${name}[${help}]'`
      : `'${name}${
        name.startsWith("--") ? "=" : "+"
      }[${help}]:${option.value}:${zshValue(option)}'`
  );
}

function zshCase(name: CommandName): string {
  const spec = commandSpec(name);
  const positionals = Object.entries(spec.positionals).map(([key, p], i) => {
    const values = name === "help"
      ? `(${commandNames().join(" ")})`
      : zshValue(p);
    const place = p.many === true ? "*" : `${i + 1}`;
    return `'${place}:${zshText(key)}:${values}'`;
  });
  const words = [
    `'--help[print help and exit]'`,
    ...Object.values(spec.options).flatMap(zshOption),
    ...positionals,
  ];
  return `    ${name}) _arguments -s ${words.join(" \\\n      ")} ;;`;
}

/** Completion for zsh; works sourced and from a directory of fpath. */
export function zshScript(): string {
  const originals = commandNames().flatMap((name) =>
    commandSpec(name).original ?? []
  );
  const overview = commandNames().map((name) =>
    `    '${name}:${zshText(commandSpec(name).summary)}'`
  );
  return `#compdef overlaybd ${originals.join(" ")}
# overlaybd completion for zsh; generated from the command table
_overlaybd() {
  local command
  local -a commands
  commands=(
${overview.join("\n")}
  )
  if [[ \${service:-overlaybd} == overlaybd ]]; then
    if (( CURRENT == 2 )); then
      _describe command commands
      return
    fi
    command=$words[2]
    shift words
    (( CURRENT-- ))
  else
    command=\${service#overlaybd-}
  fi
  case $command in
${commandNames().map(zshCase).join("\n")}
  esac
}
if [ "$funcstack[1]" = "_overlaybd" ]; then
  _overlaybd "$@"
else
  compdef _overlaybd overlaybd ${originals.join(" ")}
fi
`;
}

/** `overlaybd completion bash|zsh` */
export function run(args: Args<"completion">): number {
  if (args.shell === "bash") console.log(bashScript());
  else if (args.shell === "zsh") console.log(zshScript());
  else {
    throw new UsageError(
      EXIT.validation,
      `shell: ${args.shell} not in {bash,zsh}`,
    );
  }
  return EXIT.ok;
}
