"""Runs the workloads of benches/gpu/run.sh and writes its two files.

Ours and each peer's mode alternate A B B A in separate processes. A peer is measured only where torch is installed; a
configuration whose result is further from the f32 CPU result than the bound below gets no figure.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

LIMIT_SECONDS = 8 * 60
ROUNDS = 5
# of the largest logit: both sides of a product are rounded to bf16
TOLERANCE = 2e-2
DEVSET = ["llama_gqa", "gpt2", "qwen2", "bert"]
WORKLOADS = [
    ("decode", "smollm2-135m", ["--new-tokens", "128"]),
    ("decode", "gpt2", ["--new-tokens", "128"]),
    ("decode", "llama-3.2-1b", ["--new-tokens", "128"]),
    ("prefill", "smollm2-135m", ["--tokens", "512"]),
    ("prefill", "smollm2-135m", ["--tokens", "2048"]),
    ("prefill", "llama-3.2-1b", ["--tokens", "512"]),
    ("prefill", "llama-3.2-1b", ["--tokens", "2048"]),
    ("encoder", "bert-base", ["--batch", "32", "--tokens", "128"]),
    ("gemm", None, ["--tokens", "4096"]),
    ("gemm", None, ["--tokens", "8192"]),
]


def call(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip().splitlines()[-1] if done.stderr or done.stdout else "failed")
    return done.stdout


def ours(options, workload, shape, extra, backend="cuda", rounds=ROUNDS):
    command = [options.frit, "bench", workload, "--backend", backend, "--rounds", str(rounds), "--json"]
    command += ["--weights", options.weights, *extra]
    if shape:
        command += ["--shape", shape]
    return json.loads(call(command))


def peer(options, mode, workload, shape, extra):
    command = [sys.executable, str(pathlib.Path(__file__).with_name("peer_torch.py")), mode, workload, shape or "gemm"]
    return json.loads(call(command + ["--weights", options.weights, "--rounds", str(ROUNDS), *extra]))


def gate(options):
    """Outputs of the dev models on the GPU against the goldens in fixtures/devset."""
    import numpy

    rows = []
    for name in DEVSET:
        folder = pathlib.Path("fixtures/devset") / name
        for case in sorted(folder.glob("case*_in.npz")):
            got = pathlib.Path(options.out) / "gate.npz"
            call([options.frit, "run", str(folder), "--inputs", str(case), "--output", str(got), "--backend", "cuda"])
            found, want = numpy.load(got), numpy.load(str(case).replace("_in", "_out"))
            for key in want.files:
                if key in found.files and numpy.issubdtype(want[key].dtype, numpy.floating):
                    scale = max(1.0, float(numpy.abs(want[key]).max()))
                    error = float(numpy.abs(found[key] - want[key]).max()) / scale
                    rows.append({"model": name, "case": case.stem, "output": key, "error": error, "passes": error <= TOLERANCE})
            got.unlink()
    return rows


def device():
    query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.sm,clocks.mem", "--format=csv,noheader"]
    try:
        return call(query).strip().splitlines()[0]
    except (OSError, RuntimeError):
        return "unknown"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--frit", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    started = time.monotonic()
    try:
        import torch  # noqa: F401

        modes = ["eager", "compiled", "graph"]
    except ImportError:
        modes = []
    report = {"device": device(), "commit": call(["git", "rev-parse", "HEAD"]).strip(), "gate": gate(options), "rows": []}
    failed = [r for r in report["gate"] if not r["passes"]]
    if failed or not report["gate"]:
        print(json.dumps(failed, indent=1), file=sys.stderr)
        sys.exit("the results on the GPU are wrong: nothing is timed")
    stream = ours(options, "stream", None, ["--tokens", "16384"], rounds=20)
    report["stream_bytes_per_second"] = stream["bytes_per_second"]
    left_out = []
    for workload, shape, extra in WORKLOADS:
        label = " ".join([workload, shape or "f32", *extra])
        if time.monotonic() - started > LIMIT_SECONDS * 0.85:
            left_out.append(label)
            continue
        row = {"workload": label, "ours": [], "peers": {m: [] for m in modes}}
        try:
            for mode in modes or [None]:
                order = [True, False, False, True] if mode else [True, True]
                for is_ours in order:
                    if is_ours:
                        row["ours"].append(ours(options, workload, shape, extra)["median_ms"])
                    else:
                        row["peers"][mode].append(peer(options, mode, workload, shape, extra)["median_ms"])
        except (OSError, RuntimeError, ValueError) as e:
            row["error"] = str(e)
        report["rows"].append(row)
    report["left_out"] = left_out
    report["seconds"] = time.monotonic() - started
    write(options, report)


def middle(values):
    return sorted(values)[len(values) // 2] if values else None


def write(options, report):
    out = pathlib.Path(options.out)
    (out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    lines = [f"Device: {report['device']}; commit {report['commit'][:12]}; own stream {report['stream_bytes_per_second'] / 1e9:.0f} GB/s.", ""]
    lines += ["| workload | Frit, ms | best peer, ms | its mode | peer / Frit |", "|---|---|---|---|---|"]
    for row in report["rows"]:
        mine = middle(row["ours"])
        peers = {m: middle(v) for m, v in row["peers"].items() if v}
        best = min(peers, key=peers.get) if peers else None
        ratio = f"{peers[best] / mine:.2f}" if best and mine else ""
        shown = f"{mine:.3f}" if mine else row.get("error", "")
        lines.append(f"| {row['workload']} | {shown} | {peers[best]:.3f} | {best} | {ratio} |" if best else f"| {row['workload']} | {shown} | | | |")
    lines += ["", *(f"Left out for lack of time: {name}." for name in report["left_out"])]
    (out / "gpu.md").write_text("\n".join(lines).rstrip() + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
