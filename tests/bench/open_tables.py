"""Tables that are not yet what they should be, each with the reason. Both lists shall become empty.

A test compares them with the tables: an entry that is no longer needed fails, too.
"""

# Tables whose figures are of weights that are no longer shipped, or lack a machine or a day.
OUTDATED = {
    "motion": "noise of version 1; the machine was not noted; plain noise was measured with the "
    "weights of 27 November 2026; `make bench-motion` remakes it",
    "rehash": "seconds need a quiet machine for hours; weights of 24 November 2026; `make "
    "bench-rehash` remakes it",
    "rehash-curve": "the same run as the table `rehash`",
}

# Tables of figures on other pages that are typed, not made of rows, by page.
TYPED = {
    "docs/attention.md": 1,
    "docs/backend.md": 2,
    "docs/few-steps.md": 1,
    "docs/linear.md": 5,
    "docs/motion.md": 2,
    "docs/quality.md": 1,
    "docs/rehash.md": 8,
    "docs/sparse.md": 2,
}
