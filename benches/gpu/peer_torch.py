"""One workload in one mode of PyTorch, on the weights that `frit bench` wrote; prints a JSON object like it.

Modes: `eager`; `compiled`, the better setting of torch.compile for the workload; `graph`, a CUDA graph that is replayed
(decode: one static step). Not run where transformers is missing.
"""

import argparse
import json
import pathlib
import statistics
import time

import torch

parser = argparse.ArgumentParser()
parser.add_argument("mode", choices=["eager", "compiled", "graph"])
parser.add_argument("workload", choices=["decode", "prefill", "encoder", "gemm"])
parser.add_argument("shape")
parser.add_argument("--weights", required=True)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--batch", type=int, default=None)
parser.add_argument("--tokens", type=int, default=None)
parser.add_argument("--new-tokens", type=int, default=128)
a = parser.parse_args()
torch.manual_seed(1)
torch.set_float32_matmul_precision("high")


def timed(step, parts=1, warmup=3):
    for _ in range(warmup):
        step()
    torch.cuda.synchronize()
    times = []
    for _ in range(a.rounds):
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / parts * 1e3)
    return times


def captured(step):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def in_mode(f):
    if a.mode == "compiled":
        return torch.compile(f, mode="reduce-overhead", fullgraph=True)
    return f


def model(kind):
    from transformers import AutoConfig

    import transformers

    folder = sorted(pathlib.Path(a.weights).glob(f"{a.shape}-*"))[0]
    config = AutoConfig.from_pretrained(folder)
    loaded = getattr(transformers, kind).from_pretrained(folder, config=config, dtype=torch.bfloat16)
    return loaded.cuda().eval()


def gemm():
    n = a.tokens or 4096
    x, w = (torch.randn(n, n, device="cuda") for _ in range(2))
    f = in_mode(lambda: torch.nn.functional.linear(x, w))
    return timed(captured(f) if a.mode == "graph" else f)


def encoder():
    m = model("AutoModel")
    ids = torch.randint(0, 30000, (a.batch or 32, a.tokens or 128), device="cuda")
    f = in_mode(lambda: m(input_ids=ids).last_hidden_state)
    return timed(captured(f) if a.mode == "graph" else f)


def prefill():
    m = model("AutoModelForCausalLM")
    ids = torch.randint(0, 30000, (a.batch or 1, a.tokens or 512), device="cuda")
    f = in_mode(lambda: m(input_ids=ids, use_cache=False, logits_to_keep=1).logits)
    return timed(captured(f) if a.mode == "graph" else f)


def decode():
    from transformers import StaticCache

    m = model("AutoModelForCausalLM")
    prompt, steps = a.tokens or 32, a.new_tokens - 1
    cache = StaticCache(config=m.config, max_cache_len=prompt + steps + 1)
    ids = torch.randint(0, 30000, (a.batch or 1, prompt), device="cuda")
    position = torch.arange(prompt, device="cuda")
    first = m(input_ids=ids, past_key_values=cache, cache_position=position).logits[:, -1:].argmax(-1)
    token, at = first.clone(), torch.tensor([prompt], device="cuda")

    def step():
        logits = m(input_ids=token, past_key_values=cache, cache_position=at).logits
        token.copy_(logits[:, -1:].argmax(-1))

    step = in_mode(step) if a.mode == "compiled" else step
    step = captured(step) if a.mode == "graph" else step

    def sequence():
        token.copy_(first)
        at.fill_(prompt)
        for _ in range(steps):
            step()
            at.add_(1)

    return timed(sequence, parts=steps, warmup=2)


with torch.inference_mode():
    times = {"gemm": gemm, "encoder": encoder, "prefill": prefill, "decode": decode}[a.workload]()
print(json.dumps({"median_ms": statistics.median(times), "torch": torch.__version__, "mode": a.mode}))
