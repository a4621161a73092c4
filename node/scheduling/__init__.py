"""The requester's scheduler, without any effect: see docs/SCHEDULING.md.

`state` is what is known, `events` change it, `plan` says what to do; `estimates`,
`placement` and `feeding` are what it decides by. `node.jobs` has the effects.
"""
