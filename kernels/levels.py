"""Instruction-set levels, best first, and which ops have code of their own at each.

setup.py reads this file before anything is built: it imports nothing. Knows nothing of what runs on this processor.
"""

# For each the processors that have it, as platform.machine() calls them, and what cpu.native.level() must say there.
LEVELS = {
    "x86_64_v4_amx": ("x86_64", 7),
    "x86_64_v4_bf16": ("x86_64", 6),
    "x86_64_v4_vnni": ("x86_64", 5),
    "x86_64_v4": ("x86_64", 4),
    "x86_64_v3": ("x86_64", 3),
    "x86_64_v2": ("x86_64", 2),
    "aarch64_dot": ("aarch64", 1),
    "portable": (None, 0),
}
SAME = {"amd64": "x86_64", "arm64": "aarch64"}  # other names of these processors, in small letters

# Levels that add instructions to another one which only some ops have a use for: (the other, those ops). All other ops
# are the same code at both and are built once, at the other.
_BYTES = ("packed", "decoder", "encoder", "peak")  # multiply 8-bit integers
_PAIRS = (*_BYTES, "matmul", "attention", "feedforward", "cross_entropy", "optimizer")  # and bfloat16
ADDS = {
    "x86_64_v4_vnni": ("x86_64_v4", _BYTES),
    "x86_64_v4_bf16": ("x86_64_v4", _PAIRS),
    "x86_64_v4_amx": ("x86_64_v4", _PAIRS),
    "aarch64_dot": ("portable", _BYTES),
}

# Levels that multiply bfloat16 with instructions of its own; implementations' names end in them.
MULTIPLY_BFLOAT16 = ("x86_64_v4_amx", "x86_64_v4_bf16")


def levels_of(machine: str) -> dict[str, int]:
    """The levels of a processor that platform.machine() calls so, and what cpu.native.level() must say for each."""
    family = SAME.get(machine.lower(), machine.lower())
    return {level: needed for level, (owner, needed) in LEVELS.items() if owner in (family, None)}


def level_for(op: str, level: str) -> str:
    """The level at which op is built for `level`: that itself, or the one that it adds nothing to."""
    other, ops = ADDS.get(level, (level, ()))
    return level if op in ops else other
