"""Says on the local network what a hostile neighbour might: garbage, lies, and much of it.

python mdns_flood.py SECONDS PACKETS_PER_S OWN_HOST HOST_TO_NAME
"""

import os
import random
import socket
import sys
import time

import dns.flags
import dns.message
import dns.rrset

SERVICE = "_shoal._tcp.local."
GROUP = ("224.0.0.251", 5353)


def announcement(number, host):
    """A node that does not exist, at a place where somebody else listens."""
    name = f"liar{number}.{SERVICE}"
    message = dns.message.Message(id=0)
    message.flags = dns.flags.QR | dns.flags.AA
    message.answer = [
        dns.rrset.from_text(SERVICE, 4500, "IN", "PTR", name),
        dns.rrset.from_text(name, 4500, "IN", "SRV", f"0 0 22 liar{number}.local."),
        dns.rrset.from_text(name, 4500, "IN", "TXT", '"peer=12D3KooWnobody"', '"net="'),
        dns.rrset.from_text(f"liar{number}.local.", 4500, "IN", "A", host),
    ]
    return message.to_wire()


def main():
    seconds, rate, own, host = float(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:]
    packets = [announcement(number, host) for number in range(3000)]
    packets += [os.urandom(random.randrange(1, 1400)) for _ in range(1000)]
    packets += [packet[: len(packet) // 2] for packet in packets[:500]]
    random.shuffle(packets)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("", 5353))
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(own))
    began, sent = time.monotonic(), 0
    while (now := time.monotonic()) < began + seconds:
        while sent < (now - began) * rate:
            sock.sendto(packets[sent % len(packets)], GROUP)
            sent += 1
        time.sleep(0.001)
    print(f"{sent / seconds:.0f} packets/s")


if __name__ == "__main__":
    main()
