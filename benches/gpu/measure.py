"""Runs the workloads of benches/gpu/run.sh and writes its two files.

Ours and each mode of the peer stay alive, a process each, and alternate forwards and backwards (A B C C B A), every round
anew; a ratio is the median of the rounds' ratios. Modes are made ready side by side, a group of workloads at a time; while
one is timed, all others wait. Nothing is timed before the results on the GPU agree with the CPU's.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import select
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent
FIXTURES = HERE.parent.parent / "fixtures"
MODES = ["compiled", "overhead", "graph", "eager"]
# of steps too short to be timed launch by launch
RECORDED = ["compiled", "graph"]
KERNELS = "copy rms-norm layer-norm softmax residual-norm swiglu bias-gelu rope embedding argmax".split()
# by group: workload, shape, options of `frit bench` by name, modes of the peer
GROUPS = [
    [("decode", "smollm2-135m", {"new_tokens": 128}, MODES)],
    [
        ("decode", "gpt2", {"new_tokens": 128}, MODES),
        ("encoder", "bert-base", {"batch": 32, "tokens": 128}, MODES),
        ("gemm", "bf16", {"tokens": 4096}, ["eager"]),
        ("gemm", "bf16", {"tokens": 8192}, ["eager"]),
    ],
    [("memory", kernel, {"tokens": 8192, "width": 4096}, RECORDED) for kernel in KERNELS],
    [("decode", "llama-3.2-1b", {"new_tokens": 128}, MODES)],
    [
        ("prefill", "smollm2-135m", {"tokens": 512}, MODES),
        ("prefill", "llama-3.2-1b", {"tokens": 512}, MODES),
    ],
    [
        ("prefill", "smollm2-135m", {"tokens": 2048}, MODES),
        ("prefill", "llama-3.2-1b", {"tokens": 2048}, MODES),
    ],
]


def call(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise RuntimeError(said.splitlines()[-1] if said else f"exit status {done.returncode}")
    return done.stdout


class Process:
    """A process that answers each line with a line of JSON."""

    def __init__(self, command, **how):
        self.errors = open(os.devnull, "w")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen(command, text=True, bufsize=1, **pipes, **how)

    def send(self, request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def answers_within(self, seconds):
        return bool(select.select([self.process.stdout], [], [], max(0.0, seconds))[0])

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("it ended without an answer")
        said = json.loads(line)
        if "error" in said:
            raise RuntimeError(said["error"])
        return said

    def ask(self, request):
        self.send(request)
        return self.answer()

    def close(self):
        self.process.kill()
        self.process.wait()
        self.errors.close()


def ours(options, workload, shape, extents, rounds):
    command = [options.frit, "bench", workload, "--backend", options.backend, "--rounds", str(rounds), "--warmup", "3"]
    command += ["--weights", options.weights, "--on-request"]
    command += [part for name, value in extents.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    if workload == "gemm":
        command += ["--storage", shape]
    elif workload == "memory":
        command += ["--kernel", shape]
    elif shape:
        command += ["--shape", shape]
    return Process(command)


# how matmuls multiply, and how far results may then be from the CPU's f32: three bf16 parts hold 24 bits, one holds 8
EXACT, DEFAULT = ("exact", ["--matmul-precision", "bf16x3"], 1e-3), ("default", [], 5e-2)


def verified(options, model):
    """Whether every program of a model computes on the GPU what it does on the CPU, in full precision and as it is."""
    row = {"model": str(model.relative_to(FIXTURES)), "passes": True}
    for name, switches, tolerance in (EXACT, DEFAULT):
        # more rows than any program for few rows takes; some models hold no more than 24 tokens
        for tokens in ("41", "17"):
            command = [options.frit, "verify", str(model), "--on", options.backend, "--json", "--tokens", tokens, "--batch", "2"]
            try:
                done = subprocess.run(
                    [*command, *switches, "--tolerance", str(tolerance)], capture_output=True, text=True, timeout=120
                )
            except subprocess.TimeoutExpired:
                return {**row, "passes": False, "said": "no end after 120 s"}
            if "at most" not in done.stderr:
                break
        try:
            found = json.loads(done.stdout)["device"]
            row[name] = max((o["max_difference"] / max(1.0, o["magnitude"]) for o in found["outputs"]), default=0.0)
            # with 8 bits another token may be the likeliest
            right = row[name] <= tolerance and (name == "default" or found["same_tokens"] is not False)
        except (ValueError, KeyError):
            right = False
        if not right:
            row["passes"] = False
            row["said"] = (done.stderr.strip() or done.stdout.strip())[-2000:]
    return row


def matches_golden(options, model):
    """How far a model's outputs on the GPU are from its golden in float64, in full precision and as it is; of the first case
    that its folder has."""
    given = sorted(model.glob("case*_in.npz"))[:1] if model.is_dir() else []
    golden = [f.with_name(f.name.replace("_in", "_out")) for f in given]
    if not golden or not golden[0].exists():
        return {}
    row = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, switches, tolerance in (EXACT, DEFAULT):
            plan = str(pathlib.Path(folder) / "model.frit")
            run = [options.frit, "run", plan, "--inputs", str(given[0]), "--expect", str(golden[0]), "--json"]
            run += ["--tolerance", str(tolerance), "--backend", options.backend]
            try:
                call([options.frit, "compile", str(model), "-o", plan, *switches])
                done = subprocess.run(run, capture_output=True, text=True, timeout=120)
                compared = json.loads(done.stdout)["compared"]
            except (RuntimeError, ValueError, KeyError, subprocess.TimeoutExpired) as e:
                return {"passes": False, "said": f"golden: {e}"[:2000]}
            row[name + "_golden"] = max((c["max_difference"] / max(1.0, c["magnitude"]) for c in compared), default=None)
            if done.returncode:
                return {**row, "passes": False, "said": done.stderr.strip()[-2000:]}
    return row


def models():
    """Fixtures that hold weights, each with its own kinds of kernels."""
    found = [f.parent for part in ("devset", "families") for f in (FIXTURES / part).glob("*/model.safetensors")]
    found += [f for part in ("devset", "gguf_families") for f in (FIXTURES / part / "gguf").glob("*.gguf")]
    found += [f for f in (FIXTURES / "onnx").glob("*.onnx")]
    return sorted(found) + [FIXTURES / "lexicon"]


def checked(options, model):
    row = verified(options, model)
    return {**row, **matches_golden(options, model)} if row["passes"] else row


def gate(options):
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        chosen = [m for m in models() if any(part in str(m.relative_to(FIXTURES)) for part in options.gate.split(","))]
        return list(pool.map(lambda m: checked(options, m), chosen))


def device():
    query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.sm,clocks.mem", "--format=csv,noheader"]
    try:
        return call(query).strip().splitlines()[0]
    except (OSError, RuntimeError):
        return "unknown"


def median(values):
    values = sorted(values)
    n = len(values)
    return (values[n // 2] + values[(n - 1) // 2]) / 2 if n else None


def commit():
    try:
        return call(["git", "rev-parse", "HEAD"]).strip()
    except (OSError, RuntimeError):
        return os.environ.get("FRIT_COMMIT", "unknown")


class Workload:
    """Ours and the peer's modes on one workload, being made ready from the start.

    Kernels of a group share the peer's processes, `shared` by mode: they are made ready in a moment, one after the other.
    """

    def __init__(self, options, has_peer, shared, workload, shape, extents, modes):
        self.options = options
        self.row = {"workload": workload, "shape": shape, **extents, "ours": [], "peers": {}, "failed": {}}
        self.label = " ".join([workload, shape, *(f"{k} {v}" for k, v in extents.items())])
        self.mine = ours(options, workload, shape, extents, options.repeat)
        self.mine.send({})
        self.request = {"workload": workload, "shape": shape, "rounds": options.repeat, **extents}
        if workload == "gemm":
            self.request["dtype"] = {"bf16": "bfloat16", "f16": "float16"}.get(shape, "float32")
        command = [sys.executable, str(HERE / "peer_torch.py"), "--weights", options.weights, "--device", options.device]
        asked = options.modes.split(",") if options.modes else modes
        modes = [m for m in asked if has_peer and m in [*modes, "tuned"]]
        self.is_shared = workload == "memory"
        own = shared if self.is_shared else {}
        self.peers = {m: own[m] if m in own else own.setdefault(m, Process(command, cwd=HERE)) for m in modes}

    def begin(self):
        """Waits for ours, which writes the weights, and lets the modes begin."""
        row = self.row
        try:
            first = self.mine.answer()
            row["counters"], row["clock"] = first["counters"], first["clock"]
            row["bytes"], row["launches"] = first["bytes"], first["launches"]
        except (OSError, RuntimeError, ValueError) as e:
            row["error"] = str(e)
        if not self.is_shared:
            self.ask_all()

    def ask_all(self):
        for mode, peer in list(self.peers.items()):
            try:
                peer.send({**self.request, "mode": mode})
            except OSError as e:
                self.row["failed"][mode] = str(e)
                self.peers.pop(mode)

    def wait(self, deadline):
        """Waits until all modes are ready; those that are not by then are dropped and named."""
        row = self.row
        if self.is_shared:
            self.ask_all()
        for mode, peer in list(self.peers.items()):
            try:
                if not peer.answers_within(deadline - time.monotonic()):
                    peer.close()
                    raise RuntimeError("not ready in time")
                peer.answer()
            except (OSError, RuntimeError, ValueError) as e:
                row["failed"][mode] = str(e)
                self.peers.pop(mode)
                if not self.is_shared:
                    peer.close()

    def measure(self):
        row = self.row
        try:
            for _ in range(0 if "error" in row else self.options.rounds):
                order = [None, *self.peers, *reversed(self.peers), None]
                times = {}
                for mode in order:
                    said = self.mine.ask({}) if mode is None else self.peers[mode].ask({**self.request, "mode": mode})
                    times.setdefault(mode, []).append(said["median_ms"])
                for mode, values in times.items():
                    into = row["ours"] if mode is None else row["peers"].setdefault(mode, [])
                    into.append(sum(values) / len(values))
        except (OSError, RuntimeError, ValueError) as e:
            row["error"] = str(e)
        best = min((m for m, v in row["peers"].items() if v), key=lambda m: median(row["peers"][m]), default=None)
        if best and row["ours"]:
            row["best"], row["ratio"] = best, median([p / o for p, o in zip(row["peers"][best], row["ours"])])
        return row

    def close(self):
        for process in [self.mine, *self.peers.values()]:
            process.close()


def bandwidth(report):
    """What kernels that memory bounds move a second, beside the device's own stream and the best peer."""
    rows = [r for r in report["rows"] if r["workload"] == "memory" and r["ours"] and r.get("bytes")]
    if not rows:
        return []
    rate = lambda row, ms: row["bytes"] / ms / 1e6
    stream = report.get("stream_bytes_per_second")
    lines = ["| kernel | MB moved | launches | Frit, GB/s | of the stream | best peer, GB/s |", "|---|---|---|---|---|---|"]
    for row in rows:
        mine = rate(row, median(row["ours"]))
        share = f"{mine * 1e9 / stream:.0%}" if stream else ""
        best = row.get("best")
        peer = f"{rate(row, median(row['peers'][best])):.0f}" if best else ""
        lines.append(f"| {row['shape']} | {row['bytes'] / 1e6:.0f} | {row['launches']} | {mine:.1f} | {share} | {peer} |")
    return lines + [""]


def write(options, report):
    out = pathlib.Path(options.out)
    (out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    passed = sum(r["passes"] for r in report["gate"])
    head = f"Device: {report['device']}; commit {report['commit'][:12]}; {passed} of {len(report['gate'])} models verified"
    if report.get("stream_bytes_per_second"):
        head += f"; own stream {report['stream_bytes_per_second'] / 1e9:.0f} GB/s"
    lines = [head + f"; {options.rounds} rounds; {report['seconds']:.0f} s.", ""]
    lines += ["| workload | Frit, ms | best peer, ms | its mode | peer / Frit | other modes, ms |", "|---|---|---|---|---|---|"]
    for row in report["rows"]:
        extents = ", ".join(f"{k} {row[k]}" for k in ("batch", "tokens", "width", "new_tokens") if k in row)
        label = f"{row['workload']} {row['shape']}, {extents}"
        mine, best = median(row["ours"]), row.get("best")
        shown = f"{mine:.3f}" if mine else row.get("error", "")
        rest = [f"{m} {median(v):.3f}" for m, v in row["peers"].items() if m != best and v]
        rest += [f"{m}: {why}" for m, why in row["failed"].items()]
        peers = f"{median(row['peers'][best]):.3f} | {best} | {row['ratio']:.2f}" if best else " | |"
        lines.append(f"| {label} | {shown} | {peers} | {'; '.join(rest)} |")
    lines += [""] + bandwidth(report)
    lines += [*(f"Left out for lack of time: {name}." for name in report["left_out"])]
    (out / "gpu.md").write_text("\n".join(lines).rstrip() + "\n")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--frit", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--seconds", type=float, default=8 * 60, help="in all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3, help="repetitions in a round")
    parser.add_argument("--jobs", type=int, default=8, help="models verified at once")
    parser.add_argument("--ready", type=float, default=55, help="seconds that modes of a group may take until they are ready")
    parser.add_argument("--modes", default="", help="modes of the peer, comma between; `tuned` runs only where it is named")
    parser.add_argument("--gate", default="", help="models verified: those whose path holds one of these, comma between")
    parser.add_argument("--device", default="cuda", help="of the peer")
    parser.add_argument("--only", default="", help="workloads whose name holds this")
    parser.add_argument("--peerless", action="store_true")
    options = parser.parse_args()
    started = time.monotonic()
    deadline = started + options.seconds
    report = {"device": device(), "commit": commit(), "gate": gate(options), "rows": [], "left_out": []}
    failed = [r for r in report["gate"] if not r["passes"]]
    if failed or not report["gate"]:
        pathlib.Path(options.out, "gate.json").write_text(json.dumps(report["gate"], indent=1))
        print(json.dumps(failed, indent=1), file=sys.stderr)
        sys.exit("the results on the GPU are wrong: nothing is timed")
    print(f"{len(report['gate'])} models agree with the CPU, {time.monotonic() - started:.0f} s", file=sys.stderr)
    if options.backend == "cuda":
        stream = ours(options, "stream", None, {"tokens": 16384}, 20)
        report["stream_bytes_per_second"] = stream.ask({})["bytes_per_second"]
        stream.close()
    has_torch = not subprocess.run([sys.executable, "-c", "import torch"], capture_output=True).returncode
    for group in GROUPS:
        chosen = [w for w in group if options.only in f"{w[0]} {w[1]}"]
        left = deadline - time.monotonic()
        if not chosen or left < 30:
            report["left_out"] += [f"{w[0]} {w[1]} {w[2]}" for w in chosen]
            continue
        shared = {}
        work = [Workload(options, has_torch and not options.peerless, shared, *w) for w in chosen]
        try:
            # a fifth of the time is for timing
            until = time.monotonic() + min(options.ready, 0.8 * left)
            for w in work:
                w.begin()
            for w in work:
                w.wait(until)
            for w in work:
                report["rows"].append(w.measure())
                report["seconds"] = time.monotonic() - started
                write(options, report)
                print(f"{w.label}: {report['seconds']:.0f} s", file=sys.stderr)
        finally:
            for w in work:
                w.close()
    report["seconds"] = time.monotonic() - started
    print(write(options, report))


if __name__ == "__main__":
    main()
