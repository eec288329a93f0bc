"""Builds a large structure and drops it again, and says what it holds as Python itself counts it.

Speaks the protocol of ../c/protocol.h. Small objects come from malloc only with PYTHONMALLOC=malloc; without it they
lie in arenas that Python maps itself, and only the large ones below are the heap's.
"""

import gc
import json
import sys

LARGE = "large" in sys.argv


def build():
    if LARGE:
        return [bytes(1000 + i % 5000) for i in range(4000)]
    # No integers: sys.getsizeof tells less for them than Python asks malloc for.
    return {"key number %d" % i: i / 7 for i in range(100000, 200000)}


def size(structure):
    total = sys.getsizeof(structure)
    if LARGE:
        return total + sum(map(sys.getsizeof, structure))
    return total + sum(sys.getsizeof(key) + sys.getsizeof(value) for key, value in structure.items())


def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main():
    say("ready")
    if sys.stdin.readline() != "go\n":
        sys.exit(3)
    structure = build()
    built = size(structure)
    if "drop" in sys.argv:
        del structure
        gc.collect()
        say(json.dumps({"function": "", "leaked_bytes": 0, "leaked_objects": 0, "built": built}))
    else:
        say(json.dumps({"function": "", "leaked_bytes": built, "leaked_objects": 0, "built": built}))
    say("done")
    sys.stdin.readline()


main()
