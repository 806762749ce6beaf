"""The interpreter, and the libraries in C behind it."""

import hashlib
import json
import random
import re
import zlib

for _ in range(20):
    rows = [{"a": random.random(), "b": str(i) * 9} for i in range(9000)]
    text = json.dumps(rows)
    json.loads(text)
    re.findall("[0-9]+", text)
    zlib.compress(text.encode())
    hashlib.sha512(text.encode())
    sorted(rows, key=lambda row: row["a"])
