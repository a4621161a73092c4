"""The exact class: the same bits on any machine, because mathematics defines them.

``SPEC.md`` beside this file is the definition; ``spec`` holds its numbers,
``reference`` computes it plainly, the other backends compute it fast.
"""
