"""Who said it, and what a content id is: keys, signatures, hashes.

The lowest layer. It knows nothing of messages, programs or networks.
"""
