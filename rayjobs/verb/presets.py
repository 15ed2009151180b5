"""Presets of how much computing a run spends: the values that `--preset` gives to options that are not set.

The values come from measurements (docs/results/parts.md): KID at 1, 4, 8, 16 and 40 evaluations per image is 2.57, .46, .35, .31,
.32. Two cycles of EM reach most of what four reach. 12 epochs per cycle is the study's setting.
"""

from collections.abc import Mapping

#: Presets by name: values by the dotted names of options; an empty one leaves the defaults.
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
    """The description of a verb's `--preset`, for its help."""
    presets = []
    for name, values in PRESETS[verb].items():
        options = ", ".join(f"--{option.replace('_', '-')} {value}" for option, value in values.items())
        presets.append(f"{name}: {options or 'the defaults'}")
    return f"how much computing to spend; sets options that are not given ({'; '.join(presets)})"
