"""What is said: messages, limits, codec and the state machine of each role.

Sans-IO: no clock, socket, randomness, trio, libp2p or torch in here. Time
comes in as an argument, bytes come in as values, and effects go out as values.
"""
