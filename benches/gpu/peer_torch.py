"""PyTorch beside `frit bench`, on the weights that it wrote: reads requests as lines of JSON, answers each with one.

A request names `mode`, `workload`, `shape`, `rounds` and the workload's extents as `frit bench` calls them. What a mode
needs (a model, compiled code, a recorded graph) is made once and kept, so that modes can alternate.

Modes: `eager`; `compiled`, torch.compile with CUDA graphs (`reduce-overhead`); `graph`, the eager step recorded as a CUDA
graph; `tuned`, the step of torch.compile's `max-autotune-no-cudagraphs` recorded as a CUDA graph. Decoders are the plain
modules of lean.py, encoders the classes of transformers.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

import torch

parser = argparse.ArgumentParser()
parser.add_argument("--weights", required=True)
parser.add_argument("--device", default="cuda")
options = parser.parse_args()
torch.manual_seed(1)
torch.set_float32_matmul_precision("high")
ready = {}


def wait():
    if options.device == "cuda":
        torch.cuda.synchronize()


def timed(step, rounds, parts=1):
    wait()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        wait()
        times.append((time.perf_counter() - start) / parts * 1e3)
    return times


def captured(step):
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    wait()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def in_mode(mode, f):
    """`f` as the mode runs it."""
    if mode == "compiled":
        return torch.compile(f, mode="reduce-overhead", fullgraph=True)
    if mode == "tuned":
        torch._inductor.config.coordinate_descent_tuning = True
        return captured(torch.compile(f, mode="max-autotune-no-cudagraphs", fullgraph=True))
    return captured(f) if mode == "graph" else f


def folder(shape):
    return sorted(pathlib.Path(options.weights).glob(f"{shape}-*"))[0]


def model(kind, shape):
    import transformers

    key = (kind, shape)
    if key not in ready:
        loaded = getattr(transformers, kind).from_pretrained(folder(shape), dtype=torch.bfloat16)
        ready[key] = loaded.to(options.device).eval()
    return ready[key]


def lean(shape):
    import lean as plain

    key = ("lean", shape)
    if key not in ready:
        ready[key] = plain.load(folder(shape), options.device)
    return ready[key]


def random_ids(r, rows, tokens):
    return torch.randint(0, 30000, (rows, tokens), device=options.device)


def gemm(mode, r):
    n = r.get("tokens", 4096)
    x, w = (torch.randn(n, n, device=options.device, dtype=getattr(torch, r.get("dtype", "float32"))) for _ in range(2))
    f = in_mode(mode, lambda: torch.nn.functional.linear(x, w))
    return f, 1


def encoder(mode, r):
    m = model("AutoModel", r["shape"])
    ids = random_ids(r, r.get("batch", 32), r.get("tokens", 128))
    return in_mode(mode, lambda: m(input_ids=ids).last_hidden_state), 1


def prefill(mode, r):
    m = lean(r["shape"])
    ids = random_ids(r, r.get("batch", 1), r.get("tokens", 512))
    cache = m.cache(*ids.shape)
    at = torch.arange(ids.shape[1], device=options.device)
    return in_mode(mode, lambda: m(ids, at, cache).argmax(-1)), 1


def decode(mode, r):
    prompt, steps = r.get("tokens", 32), r.get("new_tokens", 128) - 1
    m = lean(r["shape"])
    ids = random_ids(r, r.get("batch", 1), prompt)
    cache = m.cache(ids.shape[0], prompt + steps + 1)
    first = m(ids, torch.arange(prompt, device=options.device), cache).argmax(-1)
    at = torch.tensor([prompt], device=options.device)
    token = first.clone()

    def step():
        token.copy_(m(token, at, cache).argmax(-1))

    step = in_mode(mode, step)

    def sequence():
        token.copy_(first)
        at.fill_(prompt)
        for _ in range(steps):
            step()
            at.add_(1)

    return sequence, steps


def answer(r):
    key = json.dumps({k: v for k, v in r.items() if k != "rounds"}, sort_keys=True)
    made = time.perf_counter()
    if key not in ready:
        step, parts = {"gemm": gemm, "encoder": encoder, "prefill": prefill, "decode": decode}[r["workload"]](r["mode"], r)
        for _ in range(3):
            step()
        wait()
        ready[key] = (step, parts)
    step, parts = ready[key]
    made = time.perf_counter() - made
    times = timed(step, r.get("rounds", 5), parts)
    return {"median_ms": statistics.median(times), "torch": torch.__version__, "mode": r["mode"], "made_seconds": made}


with torch.inference_mode():
    for line in sys.stdin:
        try:
            said = answer(json.loads(line))
        except Exception as e:  # one mode that does not run says so, and the others go on
            said = {"error": f"{type(e).__name__}: {e}".splitlines()[0][:300]}
        print(json.dumps(said), flush=True)
