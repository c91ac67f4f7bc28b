"""Everything that is to be measured on a hardware GPU, as tables for BENCHMARKS.md, in one command:

    cargo build --release && python benches/hardware.py

For each shape: `snlp bench` of the sequential model and the plans in turns, with random weights in f16, and, where PyTorch
with CUDA is installed, the same shape in PyTorch, eager and as a CUDA graph. `--small` runs small shapes, on anything,
to try the script; `--device cpu` takes PyTorch's CPU for that.
"""

import argparse
import datetime
import json
import re
import subprocess
import time

# Shape, arguments of `snlp bench`, plans.
CASES = [
    ("d32-w640-h5-v32768", ["--past", "128"], ["s8 12xF2", "s8 24xF1", "s20 1xF12"]),
    ("d32-w640-h5-v32768", ["--seq", "128"], ["s8 12xF2", "s8 24xF1", "s20 1xF12"]),
    ("d32-w640-h5-v32768", ["--seq", "2048"], ["s8 12xF2", "s8 24xF1", "s20 1xF12"]),
    ("d16-w2048-h32-g8-f8192-v128256-llama", ["--past", "128"], ["s4 6xF2", "s4 12xF1"]),
    ("d12-w256-h4-v8192", ["--past", "128"], ["s2 10xF1", "s2 5xF2"]),
]
SMALL = [
    ("d4-w64-h2-v97", ["--past", "16"], ["s2 2xF1"]),
    ("d4-w64-h4-g2-f96-v97-llama", ["--seq", "24"], ["1xF2 2xF1"]),
]


def sizes(shape):
    """The shape in numbers, with the defaults of `snlp bench --shape`."""
    of = {letter: int(n) for letter, n in re.findall(r"(?:^|-)([dwhgfv])(\d+)", shape)}
    of["llama"] = shape.endswith("-llama")
    of.setdefault("h", max(of["w"] // 64, 1))
    of.setdefault("g", of["h"])
    inner = -(-(8 * of["w"] // 3) // 64) * 64 if of["llama"] else 4 * of["w"]
    of.setdefault("f", inner)
    of.setdefault("v", 32768)
    return of


def snlp(args, shape, more, plans):
    command = [args.snlp, "bench", "--shape", shape, "--backend", "gpu", "--rounds", str(args.rounds), "--json"]
    command += [] if args.small else ["--dtype", "f16"]
    command += more + [x for plan in plans for x in ("--plan", plan)]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{ran.stderr}")
    return json.loads(ran.stdout)


def torch_times(args, shape, more):
    """Medians in milliseconds of a forward or step in PyTorch: eager, and as a CUDA graph."""
    import torch
    import torch.nn.functional as F

    s, cuda = sizes(shape), args.device == "cuda"
    dtype = torch.float16 if cuda else torch.float32
    past = int(more[1]) if more[0] == "--past" else 0
    tokens = 1 if past else int(more[1])
    width, heads, groups, inner = s["w"], s["h"], s["g"], s["f"]
    size, length = width // heads, past + tokens
    make = lambda *shape: torch.randn(*shape, device=args.device, dtype=dtype) * shape[0] ** -0.5
    names = ["gate", "up"] if s["llama"] else ["up"]
    layers = [
        {
            "qkv": make(width, width + 2 * groups * size), "out": make(width, width),
            "mlp": make(width, len(names) * inner), "down": make(inner, width),
            "k": make(1, groups, length, size), "v": make(1, groups, length, size),
        }
        for _ in range(s["d"])
    ]
    table, head = make(s["v"], width), make(width, s["v"])
    scale = torch.ones(width, device=args.device, dtype=dtype)
    angles = torch.arange(past, length)[:, None] * 10000 ** -(torch.arange(size // 2) / (size // 2))[None]
    cos, sin = (f(angles).to(args.device, dtype) for f in (torch.cos, torch.sin))
    ids = torch.randint(0, s["v"], (1, tokens), device=args.device)

    def norm(x):
        return F.rms_norm(x, (x.shape[-1],), scale if s["llama"] and x.shape[-1] == width else None)

    def rotary(x):
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def forward():
        x = F.embedding(ids, table)
        for layer in layers:
            q, k, v = (norm(x) @ layer["qkv"]).split([width, groups * size, groups * size], -1)
            q, k, v = (t.view(1, tokens, -1, size).transpose(1, 2) for t in (q, k, v))
            q, k = rotary(q), rotary(k)
            if not s["llama"]:
                q, k = norm(q), norm(k)
            layer["k"][:, :, past:] = k
            layer["v"][:, :, past:] = v
            y = F.scaled_dot_product_attention(
                q, layer["k"], layer["v"], is_causal=not past, enable_gqa=heads != groups)
            x = x + y.transpose(1, 2).reshape(1, tokens, width) @ layer["out"]
            y = norm(x) @ layer["mlp"]
            if s["llama"]:
                gate, up = y.chunk(2, -1)
                y = F.silu(gate) * up
            else:
                y = F.relu(y).square()
            x = x + y @ layer["down"]
        return norm(x) @ head

    def median(run):
        times = []
        for i in range(args.rounds + 3):
            start = time.perf_counter()
            run()
            if cuda:
                torch.cuda.synchronize()
            times += [(time.perf_counter() - start) * 1e3] if i >= 3 else []
        return sorted(times)[len(times) // 2]

    with torch.no_grad():
        eager = median(forward)
        if not cuda:
            return eager, None
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            forward()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            forward()
        return eager, median(graph.replay)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snlp", default="target/release/snlp")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    try:
        import torch
        have = args.device == "cpu" or torch.cuda.is_available()
    except ImportError:
        have = False
    print(f"{datetime.date.today()}, `python benches/hardware.py{' --small' if args.small else ''}`")
    if not have:
        print("PyTorch with this device is not installed: its rows are missing.")
    for shape, more, plans in SMALL if args.small else CASES:
        found = snlp(args, shape, more, plans)
        print(f"\n`{shape}` {' '.join(more)}, {found['device']}, {found['bandwidth'] / 1e9:.0f} GB/s and "
              f"{found['flops'] / 1e12:.1f} TFLOP/s as measured\n")
        print("| | ms | least | speed-up | dispatches | host ms | share of roofline |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        for row in found["rows"]:
            print(f"| `{row['plan']}` | {row['ms_median']:.3f} | {row['ms_min']:.3f} | {row['speedup']:.2f} | "
                  f"{row['dispatches']} | {row['ms_host']:.3f} | {100 * row['roofline_fraction']:.0f} % |")
        if have:
            first = found["rows"][0]["ms_median"]
            for name, ms in zip(("PyTorch, eager", "PyTorch, CUDA graph"), torch_times(args, shape, more)):
                if ms is not None:
                    print(f"| {name} | {ms:.3f} | | {first / ms:.2f} | | | |")


if __name__ == "__main__":
    main()
