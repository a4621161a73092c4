"""What keeps a node from working: a look at each thing it needs, and what to do next.

`examination` runs the checks in order; each is a function that yields findings and
changes nothing. They look at this machine (`machine`, `listening`), at the daemon and
its worker (`work`), and at the network as a newcomer finds it (`bootstrap`, `peers`).
`shoal doctor` shows the findings, `shoal bugreport` puts them into a file (`report`).
"""
