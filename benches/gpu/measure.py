"""Runs the workloads of benches/gpu/run.sh and writes its two files.

Ours and each mode of the peer stay alive, a process each, and alternate forwards and backwards (A B C C B A), every round
anew; a ratio is the median of the rounds' ratios. Modes are made ready side by side, a group of workloads at a time; while
one is timed, all others wait. Nothing is timed before the results on the GPU agree with the CPU's: those of small models
with known results, and those of each timed model on its own weights. Modes more than twice as slow as the best are
measured once. Whatever is done by the end of the time, or by the signal to end, is written.
"""

import argparse
import array
import ast
import concurrent.futures
import json
import os
import pathlib
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zipfile

HERE = pathlib.Path(__file__).parent
FIXTURES = HERE.parent.parent / "fixtures"
MODES = ["compiled", "overhead", "graph", "eager"]
# of steps too short to be timed launch by launch
RECORDED = ["compiled", "graph"]
KERNELS = "copy rms-norm layer-norm softmax residual-norm swiglu bias-gelu rope embedding argmax".split()
# seconds that a timed repetition, or an answer that nothing has to be made ready for, may take
PATIENCE = 30
# by group, the most important first: workload, shape, options of `frit bench` by name, modes of the peer
GROUPS = [
    [("decode", "smollm2-135m", {"new_tokens": 128}, MODES)],
    [
        ("decode", "gpt2", {"new_tokens": 128}, MODES),
        ("encoder", "bert-base", {"batch": 32, "tokens": 128}, MODES),
        ("gemm", "bf16", {"tokens": 4096}, ["eager"]),
        ("gemm", "bf16", {"tokens": 8192}, ["eager"]),
    ],
    [("decode", "llama-3.2-1b", {"new_tokens": 128}, MODES)],
    [
        ("prefill", "smollm2-135m", {"tokens": 512}, MODES),
        ("prefill", "llama-3.2-1b", {"tokens": 512}, MODES),
    ],
    [("memory", kernel, {"tokens": 8192, "width": 4096}, RECORDED) for kernel in KERNELS],
    [
        ("prefill", "smollm2-135m", {"tokens": 2048}, MODES),
        ("prefill", "llama-3.2-1b", {"tokens": 2048}, MODES),
    ],
]
# models verified before anything is timed; the others are when time is left
FIRST = ["devset", "lexicon", "families/gemma2/", "families/llama", "families/mixtral", "families/t5", "families/whisper"]


def call(command, seconds=60):
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise RuntimeError(said.splitlines()[-1] if said else f"exit status {done.returncode}")
    return done.stdout


class Process:
    """A process that answers each line with a line of JSON."""

    def __init__(self, command, **how):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, **pipes, **how)
        self.read = b""

    def send(self, request):
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self, seconds):
        """The next answer, if it comes in so many seconds; else an error, as for a process that ends."""
        until = time.monotonic() + max(0.0, seconds)
        while b"\n" not in self.read:
            left = max(0.0, until - time.monotonic())
            if not select.select([self.process.stdout], [], [], left)[0]:
                raise Late(f"no answer in {seconds:.0f} s")
            part = os.read(self.process.stdout.fileno(), 1 << 16)
            if not part:
                raise RuntimeError("it ended without an answer")
            self.read += part
        line, self.read = self.read.split(b"\n", 1)
        said = json.loads(line)
        if "error" in said:
            raise RuntimeError(said["error"])
        return said

    def ask(self, request, seconds=PATIENCE):
        self.send(request)
        return self.answer(seconds)

    def close(self):
        self.process.kill()
        self.process.wait()


class Late(RuntimeError):
    """No answer in time."""


def for_it(options):
    """Switches of a plan for the device that is timed, and no other."""
    return ["--for", "cuda"] if options.backend == "cuda" else []


def ours(options, workload, shape, extents, rounds):
    command = [options.frit, "bench", workload, "--backend", options.backend, "--rounds", str(rounds), "--warmup", "3"]
    command += ["--weights", options.weights, "--seed", str(options.seed), "--on-request"]
    command += for_it(options)
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
        # as models run for all devices, and as they are timed
        switches = switches if name == EXACT[0] else [*switches, *for_it(options)]
        # more rows than any program for few rows takes; some models hold no more than 24 tokens
        for tokens in ("41", "17"):
            command = [options.frit, "verify", str(model), "--on", options.backend, "--json", "--tokens", tokens, "--batch", "2"]
            try:
                done = subprocess.run(
                    [*command, *switches, "--tolerance", str(tolerance)], capture_output=True, text=True, timeout=60
                )
            except subprocess.TimeoutExpired:
                return {**row, "passes": False, "said": "no end after 60 s"}
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


def arrays(path):
    """The arrays of an .npz by name: their header and all their bytes."""
    with zipfile.ZipFile(path) as z:
        raw = {n.removesuffix(".npy"): z.read(n) for n in z.namelist()}
    out = {}
    for name, data in raw.items():
        size = struct.unpack("<H", data[8:10])[0] + 10 if data[6] == 1 else struct.unpack("<I", data[8:12])[0] + 12
        out[name] = ast.literal_eval(data[10 if data[6] == 1 else 12 : size].decode()), data[size:]
    return out


def save(path, named):
    """Writes arrays, of each its type, shape and bytes."""
    with zipfile.ZipFile(path, "w") as z:
        for name, (kind, shape, data) in named.items():
            head = repr({"descr": kind, "fortran_order": False, "shape": tuple(shape)})
            head += " " * (-(len(head) + 11) % 64) + "\n"
            z.writestr(name + ".npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + data)


def goldens(model, folder):
    """A model's first golden: inputs and outputs, if it has one."""
    if (model / "golden.npz").exists():
        held = arrays(model / "golden.npz")
        parts = {}
        for name, ours_ in (("p0_ids", "input_ids"), ("p0_logits", "logits")):
            head, data = held[name]
            parts[ours_] = head["descr"], (1, *head["shape"]), data
        given, golden = folder / "golden_in.npz", folder / "golden_out.npz"
        save(given, {"input_ids": parts["input_ids"]})
        save(golden, {"logits": parts["logits"]})
        return given, golden
    if model.is_dir():
        found = sorted(model.glob("case*_in.npz"))[:1]
    else:
        stems = [model.stem, model.stem.removesuffix("_ts")]
        found = [f for s in stems for f in (model.with_name(s + "_in.npz"), model.with_name(s + "_0_in.npz")) if f.exists()]
    found = [(f, f.with_name(f.name.replace("_in.npz", "_out.npz"))) for f in found]
    for given, golden in found:
        if golden.exists():
            # tokens that were generated are no output of a run
            kept = {n: (h["descr"], h["shape"], d) for n, (h, d) in arrays(golden).items() if h["descr"].startswith("<f")}
            save(folder / "golden_out.npz", kept)
            return given, folder / "golden_out.npz"
    return None


def matches_golden(options, model):
    """How far a model's outputs on the GPU are from its golden in float64, in full precision and as it is; of the first case
    that there is."""
    row = {}
    with tempfile.TemporaryDirectory() as folder:
        pair = goldens(model, pathlib.Path(folder))
        if not pair:
            return {}
        for name, switches, tolerance in (EXACT, DEFAULT):
            plan = str(pathlib.Path(folder) / "model.frit")
            run = [options.frit, "run", plan, "--inputs", str(pair[0]), "--expect", str(pair[1]), "--json"]
            run += ["--tolerance", str(tolerance), "--backend", options.backend]
            try:
                call([options.frit, "compile", str(model), "-o", plan, *switches])
                done = subprocess.run(run, capture_output=True, text=True, timeout=60)
                compared = json.loads(done.stdout)["compared"]
            except (OSError, RuntimeError, ValueError, KeyError, subprocess.TimeoutExpired) as e:
                return {"passes": False, "said": f"golden: {e}"[:2000]}
            row[name + "_golden"] = max((c["max_difference"] / max(1.0, c["magnitude"]) for c in compared), default=None)
            if done.returncode:
                return {**row, "passes": False, "said": done.stderr.strip()[-2000:]}
    return row


def same_on_cpu(options, workload, shape):
    """How far the first step on a timed model's own weights is from the CPU backend's: the largest difference, and whether
    the largest logit of each row is the same one."""
    found = sorted(pathlib.Path(options.weights).glob(f"{shape}-*-{options.seed}"))
    if not found:
        return {"passes": False, "said": f"no weights of {shape}"}
    tokens = 8
    ids = array.array("i", ((i * 7919 + 13) % 30000 for i in range(tokens)))
    result = []
    with tempfile.TemporaryDirectory() as folder:
        given = pathlib.Path(folder) / "in.npz"
        save(given, {"input_ids": ("<i4", (1, tokens), ids.tobytes())})
        for backend in ("cpu", options.backend):
            out = pathlib.Path(folder) / f"{backend}_out.npz"
            try:
                own = for_it(options) if backend == options.backend else []
                call([options.frit, "run", str(found[0]), "--inputs", str(given), "--output", str(out), "--backend", backend, *own])
                result.append(arrays(out))
            except (OSError, RuntimeError, subprocess.TimeoutExpired) as e:
                return {"passes": False, "said": f"{backend}: {e}"[:500]}
    gate = {"against": "cpu", "tokens": tokens, "max_abs": 0.0, "magnitude": 0.0, "argmax_agree": 1.0}
    for name, (head, data) in result[0].items():
        if head["descr"] != "<f4":
            continue
        want, have = array.array("f", data), array.array("f", result[1][name][1])
        apart = max((abs(a - b) for a, b in zip(want, have)), default=0.0)
        finite = len(want) == len(have) and all(x - x == 0.0 for x in have)
        gate["max_abs"] = max(gate["max_abs"], apart) if finite else float("inf")
        gate["magnitude"] = max(gate["magnitude"], max(map(abs, want), default=0.0))
        if name == "logits":
            width = head["shape"][-1]
            rows = [(want[i : i + width], have[i : i + width]) for i in range(0, len(want), width)]
            place = lambda row: row.index(max(row))
            gate["argmax_agree"] = sum(place(a) == place(b) for a, b in rows) / max(1, len(rows))
    gate["passes"] = gate["max_abs"] <= DEFAULT[2] * max(1.0, gate["magnitude"])
    return gate


def models():
    """Fixtures that hold weights, each with its own kinds of kernels."""
    found = [f.parent for part in ("devset", "families") for f in (FIXTURES / part).glob("*/model.safetensors")]
    found += [f for part in ("devset", "gguf_families") for f in (FIXTURES / part / "gguf").glob("*.gguf")]
    found += [f for f in (FIXTURES / "onnx").glob("*.onnx")]
    return sorted(found) + [FIXTURES / "lexicon"]


def checked(options, model, until):
    if time.monotonic() > until:
        return {"model": str(model.relative_to(FIXTURES)), "passes": None}
    row = verified(options, model)
    return {**row, **matches_golden(options, model)} if row["passes"] else row


def gate(options, chosen, until):
    """Checks models; those not begun by then pass as little as they fail."""
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        return list(pool.map(lambda m: checked(options, m, until), chosen))


def device():
    query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.sm,clocks.mem", "--format=csv,noheader"]
    try:
        return call(query).strip().splitlines()[0]
    except (OSError, RuntimeError, subprocess.TimeoutExpired):
        return "unknown"


def versions():
    """Of the driver, of the newest CUDA that it runs, and of PyTorch with the CUDA that it was built for."""
    out = {"driver": None, "cuda": None, "torch": None, "torch_cuda": None}
    try:
        said = call(["nvidia-smi"])
        out["driver"] = (re.findall(r"Driver Version: *([\d.]+)", said) or [None])[0]
        out["cuda"] = (re.findall(r"CUDA Version: *([\d.]+)", said) or [None])[0]
    except (OSError, RuntimeError, subprocess.TimeoutExpired):
        pass
    try:
        said = call([sys.executable, "-c", "import torch; print(torch.__version__, torch.version.cuda)"])
        out["torch"], out["torch_cuda"] = said.split()
    except (OSError, RuntimeError, ValueError, subprocess.TimeoutExpired):
        pass
    return out


def share(values, part):
    values = sorted(values)
    return values[round((len(values) - 1) * part)] if values else None


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
        self.request = {"workload": workload, "shape": shape, "rounds": options.repeat, "seed": options.seed, **extents}
        if workload == "gemm":
            self.request["dtype"] = {"bf16": "bfloat16", "f16": "float16"}.get(shape, "float32")
        command = [sys.executable, str(HERE / "peer_torch.py"), "--weights", options.weights, "--device", options.device, "--seed", str(options.seed)]
        asked = options.modes.split(",") if options.modes else modes
        modes = [m for m in asked if has_peer and m in [*modes, "tuned"]]
        self.is_shared = workload == "memory"
        own = shared if self.is_shared else {}
        self.peers = {m: own[m] if m in own else own.setdefault(m, Process(command, cwd=HERE)) for m in modes}

    def begin(self, until, gates):
        """Waits for ours, which writes the weights, and lets the modes begin; then compares with the CPU what is timed."""
        row = self.row
        try:
            first = self.mine.answer(until - time.monotonic())
            row["counters"], row["clock"] = first["counters"], first["clock"]
            row["bytes"], row["launches"] = first["bytes"], first["launches"]
            # both are measured by one kind of clock
            self.request["clock"] = first["clock"]
        except (OSError, RuntimeError, ValueError, KeyError) as e:
            row["error"] = str(e)
        if not self.is_shared:
            self.ask_all()
        workload, shape = row["workload"], row["shape"]
        if "error" not in row and workload in ("decode", "prefill", "encoder"):
            if shape not in gates:
                gates[shape] = same_on_cpu(self.options, workload, shape)
            row["gate"] = gates[shape]
            if not row["gate"]["passes"]:
                row["error"] = "it does not agree with the CPU: " + json.dumps(row["gate"])

    def ask_all(self):
        for mode, peer in list(self.peers.items()):
            try:
                peer.send({**self.request, "mode": mode})
            except OSError as e:
                self.fail(mode, e)

    def fail(self, mode, why):
        self.row["failed"][mode] = str(why)
        peer = self.peers.pop(mode)
        # what a late process answers would be taken for the answer to the next question
        if not self.is_shared or isinstance(why, Late):
            peer.close()

    def wait(self, deadline):
        """Waits until all modes are ready; those that are not by then are dropped and named."""
        if self.is_shared:
            self.ask_all()
        for mode, peer in list(self.peers.items()):
            try:
                peer.answer(deadline - time.monotonic())
            except Late as e:
                self.fail(mode, Late(f"not ready in time, {e}"))
            except (OSError, RuntimeError, ValueError) as e:
                self.fail(mode, e)

    def measure(self, deadline):
        row, slow = self.row, {}
        for _ in range(0 if "error" in row else self.options.rounds):
            if deadline - time.monotonic() < 2:
                break
            times = {}
            try:
                for mode in [None, *self.peers, *reversed(self.peers), None]:
                    seconds = min(PATIENCE, max(1.0, deadline - time.monotonic()))
                    if mode is None:
                        times.setdefault(mode, []).append(self.mine.ask({}, seconds)["median_ms"])
                    elif mode in self.peers:
                        try:
                            said = self.peers[mode].ask({**self.request, "mode": mode}, seconds)
                            times.setdefault(mode, []).append(said["median_ms"])
                        except (OSError, RuntimeError, ValueError) as e:
                            self.fail(mode, e)
                            times.pop(mode, None)
            except (OSError, RuntimeError, ValueError) as e:
                row["error"] = str(e)
                break
            for mode, values in times.items():
                into = row["ours"] if mode is None else row["peers"].setdefault(mode, [])
                into.append(sum(values) / len(values))
            best = min((t for m, v in row["peers"].items() for t in v[-1:]), default=0.0)
            for mode in [m for m in self.peers if row["peers"].get(m, [0.0])[-1] > 2 * best]:
                slow[mode] = self.peers.pop(mode)
        for peer in slow.values() if not self.is_shared else []:
            peer.close()
        whole = {m: v for m, v in row["peers"].items() if len(v) == len(row["ours"])}
        best = min(whole, key=lambda m: median(whole[m]), default=None)
        if best and row["ours"]:
            row["best"], row["ratio"] = best, median([p / o for p, o in zip(row["peers"][best], row["ours"])])
            # a mode that did not run might have been the best
            row["ratio_is_upper_bound"] = bool(row["failed"])
        spread = {"frit": row["ours"], **row["peers"]}
        row["p10_p90"] = {m: [share(v, 0.1), share(v, 0.9)] for m, v in spread.items() if v}
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
    passed = sum(r["passes"] is True for r in report["gate"])
    head = f"Device: {report['device']}; commit {report['commit'][:12]}; {passed} of {len(report['gate'])} models verified"
    known = [f"{n.replace('_', ' ')} {v}" for n, v in report.get("versions", {}).items() if v]
    head += f"; {', '.join(known)}" if known else ""
    head += f"; seed {options.seed}"
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
        sign = "≤ " if row.get("ratio_is_upper_bound") else ""
        peers = f"{median(row['peers'][best]):.3f} | {best} | {sign}{row['ratio']:.2f}" if best else " | |"
        lines.append(f"| {label} | {shown} | {peers} | {'; '.join(rest)} |")
    lines += [""] + bandwidth(report)
    bounded = [r for r in report["rows"] if r.get("ratio_is_upper_bound")]
    lines += ["≤: a mode of the peer failed or was not ready in time; the best of those that ran is compared."] if bounded else []
    lines += [f"WRONG, and nothing was timed: {r['model']}." for r in report["gate"] if r["passes"] is False]
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
    parser.add_argument("--gate-seconds", type=float, default=90, help="that models may be verified before anything is timed")
    parser.add_argument("--seed", type=int, default=1, help="of weights and inputs")
    parser.add_argument("--gate", default="", help="models verified: those whose path holds one of these, comma between")
    parser.add_argument("--device", default="cuda", help="of the peer")
    parser.add_argument("--only", default="", help="workloads whose name holds this")
    parser.add_argument("--peerless", action="store_true")
    options = parser.parse_args()
    options.weights = os.path.abspath(options.weights)
    started = time.monotonic()
    deadline = started + options.seconds
    report = {"device": device(), "commit": commit(), "versions": versions(), "seed": options.seed}
    report.update({"gate": [], "rows": [], "left_out": [], "seconds": 0.0})

    def keep():
        report["seconds"] = time.monotonic() - started
        return write(options, report)

    def stop(*_):
        raise SystemExit("told to end: what was measured is written")

    signal.signal(signal.SIGTERM, stop)
    try:
        everything(options, report, deadline, keep)
    finally:
        print(keep())


def verify_all(options, report, chosen, until, keep):
    """Whether nothing that was verified is wrong, and something was."""
    report["gate"] += gate(options, chosen, until)
    keep()
    failed = [r for r in report["gate"] if r["passes"] is False]
    if failed or not any(r["passes"] for r in report["gate"]):
        pathlib.Path(options.out, "gate.json").write_text(json.dumps(report["gate"], indent=1))
        print(json.dumps(failed, indent=1), file=sys.stderr)
        return False
    return True


def everything(options, report, deadline, keep):
    named = lambda m, parts: any(part in str(m.relative_to(FIXTURES)) + "/" for part in parts)
    chosen = [m for m in models() if named(m, options.gate.split(","))]
    first = [m for m in chosen if options.gate or named(m, FIRST)]
    until = min(time.monotonic() + options.gate_seconds, deadline)
    if not verify_all(options, report, first, until, keep):
        sys.exit("the results on the GPU are wrong: nothing is timed")
    print(f"{sum(r['passes'] is True for r in report['gate'])} models agree with the CPU", file=sys.stderr)
    if options.backend == "cuda":
        stream = ours(options, "stream", None, {"tokens": 16384}, 20)
        try:
            report["stream_bytes_per_second"] = stream.ask({})["bytes_per_second"]
        except (OSError, RuntimeError, ValueError, KeyError) as e:
            report["left_out"].append(f"stream ({e})")
        stream.close()
    has_torch = report["versions"]["torch"] is not None
    gates = {}
    for group in GROUPS:
        chosen_work = [w for w in group if options.only in f"{w[0]} {w[1]}"]
        left = deadline - time.monotonic()
        if not chosen_work or left < 30:
            report["left_out"] += [f"{w[0]} {w[1]} {w[2]}" for w in chosen_work]
            continue
        shared, work = {}, []
        try:
            for w in chosen_work:
                work.append(Workload(options, has_torch and not options.peerless, shared, *w))
            # a fifth of the time is for timing
            until = time.monotonic() + min(options.ready, 0.8 * left)
            for w in work:
                w.begin(until, gates)
            for w in work:
                w.wait(until)
            for w in work:
                if deadline - time.monotonic() < 5:
                    report["left_out"].append(w.label)
                    continue
                report["rows"].append(w.measure(deadline))
                keep()
                print(f"{w.label}: {report['seconds']:.0f} s", file=sys.stderr)
        finally:
            for w in work:
                w.close()
    known = {r["model"] for r in report["gate"] if r["passes"] is not None}
    rest = [m for m in chosen if str(m.relative_to(FIXTURES)) not in known]
    report["gate"] = [r for r in report["gate"] if r["passes"] is not None]
    # a model may take a minute, and nothing is verified by halves
    if not verify_all(options, report, rest, deadline - 60, keep):
        sys.exit("the results of some models on the GPU are wrong: what was timed is kept")


if __name__ == "__main__":
    main()
