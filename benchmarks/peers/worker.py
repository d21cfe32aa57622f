"""What a process that holds one model answers: "pp 128 1" (kind, tokens, sequences) with the seconds it took.

The first line it writes tells what it is, so that whoever asks knows when the model is loaded."""
import json
import sys


def serve(engine):
    print(json.dumps({"about": engine.about}), flush=True)
    for line in sys.stdin:
        kind, n, seqs = line.split()
        result = engine.run(kind, int(n), int(seqs))
        print(json.dumps(result if isinstance(result, dict) else {"seconds": result}), flush=True)
