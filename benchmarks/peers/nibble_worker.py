"""nibble with random weights of a shape, one recipe a process: nibble_worker.py SHAPE.json RECIPE THREADS [KV_TYPE]

nb_bench() warms up once on its own and measures the roofs of the machine before each test, which come back beside the seconds."""
import sys

import nibble

import worker


class Nibble:
    def __init__(self, shape, recipe, threads, kv):
        self.model = nibble.Model.random(shape, recipe=None if recipe == "bf16" else recipe, threads=threads, device="cpu")
        self.kv = kv
        info = self.model.info
        self.about = f"nibble {nibble.library_version()}, {info['scheme']}, {info['weight_bytes'] / 2**30:.2f} GiB, {info['device']}"

    def run(self, kind, n, seqs):
        row = nibble.bench(self.model, prompt=[n] if kind == "pp" else [], gen=[n] if kind == "tg" else [], batch=[seqs],
                           repetitions=1, kv_dtype=self.kv)[0]
        roofs = {k: row[k] for k in ("mem_gbs", "int8_gops", "pct_mem", "pct_int8") if k in row}
        return {"seconds": row["samples_ns"][0] / 1e9, **roofs}


if __name__ == "__main__":
    shape, recipe, threads = sys.argv[1:4]
    worker.serve(Nibble(shape, recipe, int(threads), sys.argv[4] if len(sys.argv) > 4 else "f16"))
