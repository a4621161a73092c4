"""How results are checked: who is drawn to do it and how often, disputes, fraud proofs.

Pure, as all of `protocol`: what is decided here by one node can be decided again, from
the same signed bytes, by any other.
"""
