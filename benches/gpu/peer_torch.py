"""PyTorch beside `frit bench`, on the weights that it wrote: reads requests as lines of JSON, answers each with one.

A request names `mode`, `workload`, `shape`, `rounds` and the workload's extents as `frit bench` calls them. What a mode
needs (a model, compiled code, a recorded graph) is made once and kept, so that modes can alternate.

Modes: `eager`; `compiled`, the step of torch.compile recorded as a CUDA graph by hand; `overhead`, torch.compile's own
`reduce-overhead`, which leaves graphs out where a step writes its cache; `graph`, the eager step recorded as a CUDA graph;
`tuned`, the step of `max-autotune-no-cudagraphs` recorded as a CUDA graph, which takes minutes to be ready. Decoders are
the plain modules of lean.py, encoders the classes of transformers. On other devices nothing is recorded.
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
parser.add_argument("--seed", type=int, default=1)
options = parser.parse_args()
torch.manual_seed(options.seed)
torch.set_float32_matmul_precision("high")
ready = {}


def wait():
    if options.device == "cuda":
        torch.cuda.synchronize()


def timed(step, rounds, parts=1, clock="host"):
    """Milliseconds of a part: by the device's clock where `frit bench` goes by it, else by the host's, waits and all."""
    wait()
    times = []
    if clock == "device" and options.device == "cuda":
        for _ in range(rounds):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            step()
            end.record()
            wait()
            times.append(start.elapsed_time(end) / parts)
        return times
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        wait()
        times.append((time.perf_counter() - start) / parts * 1e3)
    return times


def captured(step):
    if options.device != "cuda":
        return step
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
        return captured(torch.compile(f, fullgraph=True))
    if mode == "overhead":
        return torch.compile(f, mode="reduce-overhead", fullgraph=True)
    if mode == "tuned":
        torch._inductor.config.coordinate_descent_tuning = True
        return captured(torch.compile(f, mode="max-autotune-no-cudagraphs", fullgraph=True))
    return captured(f) if mode == "graph" else f


def folder(shape):
    return sorted(pathlib.Path(options.weights).glob(f"{shape}-*-{options.seed}"))[0]


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


def rotated(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


# launches between two looks at the clock, where one takes no longer than the look
MANY = 20


def repeated(step):
    def many():
        for _ in range(MANY):
            step()

    return many, MANY


# as `frit bench memory` has them, on float32
def memory(mode, r):
    rows, width = r.get("tokens", 4096), r.get("width", 4096)
    of = lambda *shape: torch.rand(*shape, device=options.device) * 2 - 1
    x, y, gain, bias = of(rows, width), of(rows, width), of(width), of(width)
    F = torch.nn.functional
    rms = lambda x: F.rms_norm(x, (width,), gain, 1e-5)
    kernel = r["shape"]
    if kernel == "rope":
        heads, cos, sin = of(1, width // 64, rows, 64), of(rows, 32), of(rows, 32)
        return repeated(in_mode(mode, lambda: rotated(heads, cos, sin)))
    if kernel == "embedding":
        table = of(8192, width).to(torch.bfloat16 if r.get("storage") == "bf16" else torch.float32)
        ids = torch.randint(0, 8192, (rows,), device=options.device)
        return repeated(in_mode(mode, lambda: F.embedding(ids, table).float()))

    def residual():
        s = x + y
        return s, rms(s)

    steps = {
        "copy": lambda: x * 2,
        "rms-norm": lambda: rms(x),
        "layer-norm": lambda: F.layer_norm(x, (width,), gain, bias, 1e-5),
        "softmax": lambda: x.softmax(-1),
        "residual-norm": residual,
        "swiglu": lambda: F.silu(x) * y,
        "bias-gelu": lambda: F.gelu(x + bias, approximate="tanh"),
        "argmax": lambda: x.argmax(-1),
    }
    return repeated(in_mode(mode, steps[kernel]))


WORKLOADS = {"gemm": gemm, "encoder": encoder, "prefill": prefill, "decode": decode, "memory": memory}


def answer(r):
    key = json.dumps({k: v for k, v in r.items() if k not in ("rounds", "clock")}, sort_keys=True)
    made = time.perf_counter()
    if key not in ready:
        step, parts = WORKLOADS[r["workload"]](r["mode"], r)
        for _ in range(3):
            step()
        wait()
        ready[key] = (step, parts)
    step, parts = ready[key]
    made = time.perf_counter() - made
    clock = r.get("clock", "host")
    times = sorted(timed(step, r.get("rounds", 5), parts, clock))
    p10, p90 = (times[round((len(times) - 1) * part)] for part in (0.1, 0.9))
    said = {"median_ms": statistics.median(times), "p10_ms": p10, "p90_ms": p90, "clock": clock, "mode": r["mode"]}
    return {**said, "torch": torch.__version__, "made_seconds": made}


with torch.inference_mode():
    for line in sys.stdin:
        try:
            said = answer(json.loads(line))
        except Exception as e:  # one mode that does not run says so, and the others go on
            said = {"error": f"{type(e).__name__}: {e}".splitlines()[0][:300]}
        print(json.dumps(said), flush=True)
