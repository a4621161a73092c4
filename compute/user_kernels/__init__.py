"""Users' GPU kernels: lowered by the submitter, held against rules, compiled by the provider.

A kernel travels as Triton IR in text (TTIR), never as Python and never as a binary. `lower`
makes the text, in the submitter's process; `rules` says which texts are taken, without
Triton; `parsing` reads one with Triton's own parser and looks at what came of it;
`compiling` makes the code of one generation of cards. Only `lower` runs outside a worker.
"""
