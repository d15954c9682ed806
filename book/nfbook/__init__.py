"""The companion: what stands between runs and the pages of the book. It imports nfcore, never the reverse."""

SPEC = "application/vnd.nfcore.figure+json"  # the MIME type of what a figure brings beside its picture
