"""The companion: what stands between runs and the pages of the book. It imports nfcore, never the reverse."""

import warnings


SPEC = "application/vnd.nfcore.figure+json"  # the MIME type of what a figure brings beside its picture

# From tqdm, for want of a widget; it would put a path of this machine into a notebook.
warnings.filterwarnings("ignore", "IProgress not found")
