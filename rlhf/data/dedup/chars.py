"""What each code point becomes in a normalised text: one table with the results of `str.lower` and `str.isalnum`.

Python itself fills the table. So the kernels agree with `shingles.normalise` in every Unicode version. The first plane of code points takes
a few milliseconds. Two things are added only if a text needs them: the other planes, and the flags for a capital sigma, which is the
only letter whose lower case depends on the letters around it.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

CODE = 0x1FFFFF  # the lower-case code point; 0: the character is dropped
CASED, IGNORABLE = 1 << 30, 1 << 31  # what decides whether a sigma ends a word (Unicode 3.13, Final_Sigma)
ASK = 1 << 29  # on the capital sigma's entry, as long as these two flags are not in the table
SIGMA, FINAL_SIGMA = 0x3A3, 0x3C2
BASIC, ALL = 0x10000, 0x110000
PLANES = (0x00000, 0x10000, 0x20000, 0x30000, 0xE0000)  # the others are unassigned or for private use


@cache
def lower_table(wide: bool, sigma: bool) -> NDArray[np.uint32]:
    """uint32 [65,536], or [1,114,112] if `wide`: the lower-case code of each character, with its flags if `sigma`."""
    table = np.zeros(ALL if wide else BASIC, np.uint32)
    for start in PLANES if wide else (0,):
        plane = "".join(map(chr, range(start, start + BASIC)))
        table[start : start + BASIC] = _lowered(plane)
        if sigma:
            table[start : start + BASIC] |= np.array([_flags(c) for c in plane], np.uint32)
    if not sigma:
        table[SIGMA] |= ASK
    table.flags.writeable = False
    return table


def _lowered(plane: str) -> NDArray[np.uint32]:
    """The lower-case codes. Only U+0130 becomes two characters: an i, and a combining dot that is dropped."""
    lowered = plane.replace("\u0130", "i").replace(chr(SIGMA), "σ").lower()
    assert len(lowered) == len(plane), "some other character has a longer lower case in this Unicode version"
    codes = np.frombuffer(lowered.encode("utf-32-le", "surrogatepass"), np.uint32)
    return np.where(np.array([c.isalnum() for c in lowered]), codes, np.uint32(0))


def _flags(character: str) -> int:
    """The character's flags: `str.lower` shows them by what a sigma becomes after the character."""
    if (character + "Σ").lower()[-1] == "ς":
        return CASED
    return IGNORABLE if ("a" + character + "Σ").lower()[-1] == "ς" else 0
