#!/usr/bin/env bash
# Fills fuzz/corpus from the fixtures and, with SNLP_PYTHON (a Python with the onnx package), the ONNX project's node cases.
set -euo pipefail
cd "$(dirname "$0")/.."
corpus=fuzz/corpus
mkdir -p "$corpus"/{import,external,plan,plan_file,npz,tokenizer}

cp fixtures/bad/*.onnx "$corpus/import"
for shape in d2-w8-h2-v16 d2-w8-h2-v16-llama d2-w8-h2-v16-gpt2 d4-w4-h1-v8; do
  cargo run --quiet --release --example shape -- "$shape" "$corpus/import/$shape.onnx"
done
if [ -n "${SNLP_PYTHON:-}" ]; then
  cases=$(mktemp -d)
  "$SNLP_PYTHON" tests/python/node_cases.py "$cases" tests/node_cases/operators.txt > /dev/null
  for model in "$cases"/*/model.onnx; do
    [ "$(stat -c %s "$model")" -le 16384 ] && cp "$model" "$corpus/import/$(basename "$(dirname "$model")").onnx"
  done
  rm -r "$cases"
fi

cp fixtures/bad/*.npz "$corpus/npz"
cp fixtures/nano/tokenizer.json "$corpus/tokenizer/nano.json"

n=0
while IFS= read -r plan; do
  n=$((n + 1))
  printf '%s' "$plan" > "$corpus/plan/$n"
  printf 'plan = "%s"\n[model]\nfile = "m.onnx"\nsha256 = "ab"\nlayers = 12\n' "$plan" > "$corpus/plan_file/$n"
done <<'PLANS'
sequential
s8 12xF2
6xF1[k=2]
4*1xF2 s2
s1 3xF2[k=2,init=batch_fwd,tap=unit] s1
2xF1[surrogate=transfer,elk=0.1,avg] 1xF4[kv=exact]
6xF1[init=preheat,surrogate=jacobi,tap=partial,kv=shared]
PLANS
cat > "$corpus/plan_file/full" <<'TOML'
plan = "s3 9xF1"
[model]
file = "model.onnx"
sha256 = "9f86"
layers = 12
[search]
budget = "ppl+2%"
optimize = "cost"
seed = 0
version = "0.1.0"
[measured]
windows = 64
tokens = 16384
ppl = 19.2
sequential_ppl = 19.0
kl = 0.01
top1 = 0.97
sequential_depth = 4
cost = 0.5
ms = 10.0
sequential_ms = 20.0
device = "a GPU"
TOML

printf 'dims=8,8\nlocation=w.bin\n' > "$corpus/external/plain"
printf 'dims=4\nlocation=in/w.bin\noffset=16\nlength=16\n' > "$corpus/external/offset"
printf 'dims=4\nlocation=out.bin\n' > "$corpus/external/link"
printf 'dims=4\nlocation=up/secret.bin\nchecksum=00\n' > "$corpus/external/up"
printf 'dims=4\nlocation=pipe\n' > "$corpus/external/pipe"
printf 'dims=-1,9223372036854775807\ntype=10\nlocation=../secret.bin\nlength=-1\n' > "$corpus/external/absurd"
for folder in "$corpus"/*; do echo "$(basename "$folder"): $(ls "$folder" | wc -l) seeds"; done
