"""The companion: what stands between runs and the pages of the book. It imports nfcore, never the reverse."""

import re
import warnings


SPEC = "application/vnd.nfcore.figure+json"  # the MIME type of what a figure brings beside its picture

# From tqdm, for want of a widget; it would put a path of this machine into a notebook.
warnings.filterwarnings("ignore", "IProgress not found")


def typeset(text: str) -> str:
    """Text as pages show it: a minus sign where a number is negative, and no line break before a percent sign.

    >>> typeset("-8.2 % [-21.4, -16.9] in GPT-2 on 2026-11-27")
    '−8.2\\xa0% [−21.4, −16.9] in GPT-2 on 2026-11-27'
    """
    return re.sub(r"(?<=\d) %", "\u00a0%", re.sub(r"(?<![\w.)\]-])-(?=\d)", "\u2212", text))
