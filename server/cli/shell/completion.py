"""`prefmix completion SHELL`: a script that completes commands, flags, their values and files.

The script holds all words, so that completing starts no Python. It is made from the parsers and,
for the words after `--`, from the list of vLLM's flags.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from prefmix.server.launch.mixture_flags import HONOURED, LIMITED

SHELLS = ("bash", "zsh", "fish")


@dataclass
class Node:
    """A command or subcommand."""

    path: tuple[str, ...]
    summary: str
    takes_engine_flags: bool
    flags: list[argparse.Action] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)
    choices: list[str] = field(default_factory=list)
    """The values of its positional arguments, if they are known."""

    @property
    def words(self) -> list[str]:
        """The words of its flags, subcommands and values."""
        flags = [option for flag in self.flags for option in flag.option_strings]
        return [*(child.path[-1] for child in self.children), *self.choices, *flags]

    def nodes(self) -> Iterator[Node]:
        """Itself and all below."""
        yield self
        for child in self.children:
            yield from child.nodes()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the name of the shell."""
    parser.add_argument("shell", choices=SHELLS, metavar="bash|zsh|fish", help="your shell")


def run(args: argparse.Namespace, passthrough: Sequence[str]) -> int:
    """Prints the script; returns the exit code."""
    print(script(args.shell), end="")
    return 0


def script(shell: str) -> str:
    """The script for one of SHELLS."""
    commands = tree()
    if shell == "fish":
        return _fish(commands)
    head = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return head + _bash(commands)


def tree() -> list[Node]:
    """The nodes of all commands."""
    from prefmix.server.cli.shell.commands import COMMANDS, parser_of

    return [
        _node(parser_of(each), (each.name,), each.summary, each.takes_engine_flags)
        for each in COMMANDS
    ]


def engine_flags() -> list[str]:
    """The flags of vLLM that a mixture takes."""
    return sorted("--" + name.replace("_", "-") for name in {*HONOURED, *LIMITED})


def _node(
    parser: argparse.ArgumentParser, path: tuple[str, ...], summary: str, takes_engine_flags: bool
) -> Node:
    node = Node(path, summary, takes_engine_flags)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {each.dest: each.help or "" for each in action._choices_actions}
            node.children = [
                _node(sub, (*path, name), summaries.get(name, ""), takes_engine_flags)
                for name, sub in action.choices.items()
            ]
        elif action.option_strings:
            node.flags.append(action)
        elif action.choices is not None:
            node.choices += map(str, action.choices)
    return node


def _values(flag: argparse.Action) -> list[str]:
    return [] if flag.choices is None else [str(choice) for choice in flag.choices]


def _bash(commands: list[Node]) -> str:
    nodes = [node for command in commands for node in command.nodes()]
    words = [
        f"        {shlex.quote(' '.join(node.path))}) words={shlex.quote(' '.join(node.words))}"
        f"{'; files=' if node.children or node.choices else ''} ;;"
        for node in nodes
    ]
    parents = [
        f"        {shlex.quote(' '.join(node.path))}) "
        f"children={shlex.quote(' '.join(child.path[-1] for child in node.children))} ;;"
        for node in nodes
        if node.children
    ]
    values = [
        f"        {shlex.quote(' '.join([*node.path, option]))}) "
        f"words={shlex.quote(' '.join(_values(flag)))}; files= ;;"
        for node in nodes
        for flag in node.flags
        for option in flag.option_strings
        if flag.choices is not None
    ]
    names = " ".join(node.path[0] for node in commands)
    engines = "|".join(node.path[0] for node in commands if node.takes_engine_flags)
    return "\n".join(
        [
            "_prefmix() {",
            '    local cur="${COMP_WORDS[COMP_CWORD]}" prev="" path="" words="" children=""',
            '    local files=1 index word passed= start=""',
            '    [ "$COMP_CWORD" -gt 0 ] && prev="${COMP_WORDS[COMP_CWORD-1]}"',
            # --flag=VALUE is three words to bash, and one to zsh and where = breaks no words.
            '    if [ "$cur" = "=" ]; then cur=""',
            '    elif [ "$prev" = "=" ]; then prev="${COMP_WORDS[COMP_CWORD-2]}"; fi',
            '    case "$cur" in',
            '        --*=*) prev="${cur%%=*}"; start="$prev="; cur="${cur#*=}" ;;',
            "    esac",
            f"    children={shlex.quote(names)}",
            "    for ((index = 1; index < COMP_CWORD; index++)); do",
            '        word="${COMP_WORDS[index]}"',
            '        [ "$word" = "--" ] && { passed=1; break; }',
            '        case " $children " in',
            '            *" $word "*) path="${path:+$path }$word"; children="" ;;',
            "            *) continue ;;",
            "        esac",
            '        case "$path" in',
            *(f"    {line}" for line in parents),
            "        esac",
            "    done",
            '    case "$path" in',
            f"        '') words={shlex.quote(names + ' help --help --version')}; files= ;;",
            *words,
            "    esac",
            '    if [ -n "$passed" ]; then',
            '        case "${path%% *}" in',
            f"            {engines}) words={shlex.quote(' '.join(engine_flags()))} ;;",
            "        esac",
            "    else",
            '        case "$path $prev" in',
            *(f"    {line}" for line in values),
            "        esac",
            "    fi",
            '    [ "${COMP_WORDS[1]}" = help ] && { words=' + shlex.quote(names) + "; files=; }",
            '    [ -n "$start" ] && [ -n "$files" ] && words=""',  # flags are no values
            '    COMPREPLY=( $(compgen -P "$start" -W "$words" -- "$cur") )',
            '    if [ -n "$files" ] && [ "${cur#-}" = "$cur" ]; then',
            "        compopt -o filenames 2>/dev/null",  # zsh has none, and needs none
            '        COMPREPLY+=( $(compgen -P "$start" -f -- "$cur") )',
            "    fi",
            "}",
            "complete -F _prefmix prefmix",
            "",
        ]
    )


def _fish(commands: list[Node]) -> str:
    names = " ".join(node.path[0] for node in commands)
    lines = ["complete -c prefmix -n __fish_use_subcommand -f"]
    lines += [
        _fish_line("__fish_use_subcommand", f"-f -a {node.path[0]}", node.summary)
        for node in commands
    ]
    lines.append(_fish_line("__fish_use_subcommand", "-f -a help", "explain a command"))
    lines += [
        _fish_line("__fish_use_subcommand", f"-f -l {each}", "") for each in ("help", "version")
    ]
    lines.append(_fish_line("__fish_seen_subcommand_from help", f"-f -a '{names}'", ""))
    for node in (node for command in commands for node in command.nodes()):
        siblings = " ".join(child.path[-1] for child in node.children)
        seen = "; and ".join(f"__fish_seen_subcommand_from {name}" for name in node.path)
        here = f"{seen}; and not __fish_seen_subcommand_from {siblings}" if siblings else seen
        for child in node.children:
            lines.append(_fish_line(here, f"-f -a {child.path[-1]}", child.summary))
        if node.choices:
            lines.append(_fish_line(here, f"-f -a {shlex.quote(' '.join(node.choices))}", ""))
        for flag in node.flags:
            lines.append(_fish_line(here, _fish_flag(flag), flag.help or ""))
    engines = " ".join(node.path[0] for node in commands if node.takes_engine_flags)
    after = f"__fish_seen_subcommand_from {engines}; and contains -- -- (commandline -opc)"
    lines.append(_fish_line(after, f"-a {shlex.quote(' '.join(engine_flags()))}", "flag of vLLM"))
    return "\n".join(lines) + "\n"


def _fish_flag(flag: argparse.Action) -> str:
    words = [
        f"-l {option.removeprefix('--')}" if option.startswith("--") else f"-s {option[1:]}"
        for option in flag.option_strings
    ]
    if flag.choices is not None:
        words.append(f"-x -a {shlex.quote(' '.join(_values(flag)))}")
    elif flag.nargs != 0:
        words.append("-r")
    return " ".join(words)


def _fish_line(condition: str, what: str, description: str) -> str:
    # Fish knows backslashes before quotes, unlike other shells.
    plain = description.replace("%%", "%").replace("\\", "\\\\").replace("'", "\\'")
    described = f" -d '{plain}'" if plain else ""
    return f"complete -c prefmix -n '{condition}' {what}{described}"
