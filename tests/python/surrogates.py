"""How far plans are from the sequential model, by iterations and surrogate, as a table in Markdown.

    python tests/python/surrogates.py --snlp target/release/snlp --model M.onnx --tokens W.npz --units 8 \\
        --iterations 1 2 3 4 6 8
"""

import argparse
import json
import subprocess
import sys

SURROGATES = [("transfer", "HCN"), ("identity", "identity"), ("jacobi", "jacobi")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snlp", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--units", type=int, required=True)
    parser.add_argument("--iterations", type=int, nargs="+", required=True)
    parser.add_argument("--backend", default="cpu")
    args = parser.parse_args()
    words = [args.snlp, "eval", args.model, "--tokens", args.tokens, "--json", "--backend", args.backend]
    cases = [(k, surrogate) for k in args.iterations for surrogate in SURROGATES]
    for k, (surrogate, _) in cases:
        words += ["--plan", f"{args.units}xF1[k={k},surrogate={surrogate},tap=unit]"]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    answer = json.loads(done.stdout)
    sequential = answer["sequential"]["ppl"]
    print("| K | surrogate | perplexity | against sequential | KL | top-1 | 1 - cosine |\n| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    print(f"| | sequential | {sequential:.4f} | | | | |")
    for (k, (_, name)), plan in zip(cases, answer["plans"]):
        print(f"| {k} | {name} | {plan['ppl']:.4f} | {plan['ppl'] / sequential - 1:+.3%} | {plan['kl']:.2e} | "
              f"{plan['top1']:.4f} | {1 - plan['cosine']:.1e} |")


if __name__ == "__main__":
    main()
