"""Studies: one file per theme, each with its `CLAIMS`; `openvocab claims` runs them all."""
