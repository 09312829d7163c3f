"""SHIFT: features that a classifier should not use, found, judged and taken out."""
