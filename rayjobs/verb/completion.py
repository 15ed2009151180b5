"""`ortho completion bash` or `zsh`: a shell script that completes verbs, their options, and paths after them."""

from ortho_core.errors import UserError
from rayjobs.verb.help import EVERYWHERE, HELP, LOCAL, flag_of, leaves
from rayjobs.verb.presets import PRESETS
from rayjobs.verb.table import VERBS

#: The first lines for each shell: zsh loads its support for bash's functions.
SHELLS = {"bash": "", "zsh": "autoload -U +X bashcompinit && bashcompinit\n"}
#: Dots do not break words, so `--train.lr` is one word. Without a match, the shell completes paths.
SCRIPT = """{head}_ortho() {{
  local words word="${{COMP_WORDS[COMP_CWORD]}}"
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then words="{verbs}"
  elif [ "${{COMP_WORDS[1]}}" = help ]; then words="{verbs}"
  elif [ "${{word#-}}" = "$word" ]; then return
  else case "${{COMP_WORDS[1]}}" in
{options}
  esac; fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _ortho ortho
"""


def completion(argv: list[str]) -> str:
    """The script for the shell that `argv` names. Raises UserError for another shell."""
    if len(argv) != 1 or argv[0] not in SHELLS:
        raise UserError(f'name the shell, {" or ".join(SHELLS)}, for example: eval "$(ortho completion bash)"')
    options = "\n".join(f'    {name}) words="{" ".join(options_of(name))}" ;;' for name in VERBS)
    return SCRIPT.format(head=SHELLS[argv[0]], verbs=" ".join([*VERBS, "help", "completion"]), options=options)


def options_of(name: str) -> list[str]:
    """Every option of a verb."""
    entries = [*EVERYWHERE, HELP, *([LOCAL] if VERBS[name].ray else [])]
    more = ["--help", *(["--preset"] if name in PRESETS else [])]
    return [
        *map(flag_of, (field for field, _ in leaves(VERBS[name].model()))),
        *(entry.split()[0] for entry, _ in entries),
        *more,
    ]
