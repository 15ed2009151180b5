"""One dial for how much is spent: the values that `--preset` gives to options that nobody set.

From what was measured (docs/results/parts.md): KID at 1, 4, 8, 16 and 40 evaluations per image is 2.57, .46, .35, .31, .32; two
cycles of EM reach most of what four do; 12 epochs a cycle are what the study has.
"""

from collections.abc import Mapping

#: Names of presets, what they are for, and values by the dotted names of options; none: the defaults.
Presets = Mapping[str, Mapping[str, object]]

PRESETS: Mapping[str, Presets] = {
    "assign": {
        "fast": {"steps": 4},
        "balanced": {},
        "thorough": {"steps": 24, "patience": 0},
    },
    "em": {
        "fast": {"cycles": 2, "train.epochs": 4, "evaluate.rows": 64},
        "balanced": {},
        "thorough": {"train.epochs": 12, "evaluate.rows": 512},
    },
}


def preset_line(verb: str) -> str:
    """What `--preset` of a verb does, for its help."""
    told = []
    for name, values in PRESETS[verb].items():
        options = ", ".join(f"--{option.replace('_', '-')} {value}" for option, value in values.items())
        told.append(f"{name}: {options or 'the defaults'}")
    return f"how much is spent, where nothing else is said ({'; '.join(told)})"
