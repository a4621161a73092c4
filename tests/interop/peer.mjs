// A js-libp2p peer: `node peer.mjs KEY_FILE` prints its address as JSON and waits,
// `node peer.mjs KEY_FILE ADDRESS` dials, pings, identifies, prints what it learned, and ends.
// KEY_FILE is a swarm.key, or - for none.
import { readFileSync } from 'node:fs'

// These packages ask for Node 22, which has it.
Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new this((yes, no) => { resolve = yes; reject = no })
  return { promise, resolve, reject }
}

const { createLibp2p } = await import('libp2p')
const { tcp } = await import('@libp2p/tcp')
const { noise } = await import('@chainsafe/libp2p-noise')
const { yamux } = await import('@chainsafe/libp2p-yamux')
const { identify } = await import('@libp2p/identify')
const { ping } = await import('@libp2p/ping')
const { preSharedKey } = await import('@libp2p/pnet')
const { multiaddr } = await import('@multiformats/multiaddr')

const [keyFile, address] = process.argv.slice(2)
const options = {
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: { identify: identify(), ping: ping() }
}
if (keyFile !== '-') {
  options.connectionProtector = preSharedKey({ psk: readFileSync(keyFile) })
}
const peer = await createLibp2p(options)

if (address === undefined) {
  console.log(JSON.stringify({ address: peer.getMultiaddrs()[0].toString() }))
} else {
  const identified = new Promise(resolve => {
    peer.addEventListener('peer:identify', event => resolve(event.detail.protocols))
  })
  const learned = {}
  try {
    const connection = await peer.dial(multiaddr(address), { signal: AbortSignal.timeout(5000) })
    learned.peer = connection.remotePeer.toString()
    learned.ping_ms = await peer.services.ping.ping(multiaddr(address))
    learned.protocols = await identified
  } catch (error) {
    learned.error = `${error.name}: ${error.message}`
  }
  console.log(JSON.stringify(learned))
  await peer.stop()
  process.exit(0)
}
