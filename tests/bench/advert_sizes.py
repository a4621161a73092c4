"""How large adverts are: ``python tests/bench/advert_sizes.py``. Every node hears them all."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "property"))

from advert_samples import NODES
from strategies import BOB

from shoal.crypto.envelope import Statement
from shoal.protocol.advert_fitting import fitted, size_bytes
from shoal.protocol.codec import encode
from shoal.protocol.limits import ADVERT_LIMIT_BYTES

print(f"| node | all it would say | signed, of {ADVERT_LIMIT_BYTES} bytes | left of it |")
print("|---|---|---|---|")
for name, advert in NODES.items():
    short = fitted(advert)
    signed = BOB.sign(Statement.ADVERT, encode(short))
    left = (
        f"{sum(d.count for d in short.devices)} of {len(advert.devices)} devices, "
        f"{sum(len(d.rates) for d in short.devices)} rates, "
        f"{len(short.addresses)} of {len(advert.addresses)} addresses, {len(short.via)} via"
    )
    print(f"| {name} | {size_bytes(advert)} | {len(signed)} | {left} |")
