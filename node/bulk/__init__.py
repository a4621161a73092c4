"""Bulk channels: large blobs between peers over TLS on a port of their own.

Part of the steps "fetch inputs" and "deliver". libp2p's muxer in Python carries a tenth
of what OpenSSL does, and every byte of it passes through the daemon's one loop; here
bytes go through blocking sockets in threads, which let go of the interpreter for each
record that they encrypt, each chunk that they hash and each that they read or write. The
loop only starts them, supervises them and answers for rights.

`transfer` takes a blob from several peers, chunk by chunk as `plan` says, by `channels`,
which agrees on a channel over the control stream. `listener` takes connections in by their
`tokens`, `certificates` makes the TLS of both sides, `serving` and `taking` are the two
threads, and `wire` is what they speak through. The words are in
`protocol.channel_messages`.
"""
