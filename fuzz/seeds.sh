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
# One small file for each kind of model: long ones change too little under mutation.
n=0
while IFS= read -r tokenizer; do
  n=$((n + 1))
  printf '%s' "$tokenizer" > "$corpus/tokenizer/$n"
done <<'TOKENIZERS'
{"version":"1.0","added_tokens":[{"id":5,"content":"<|endoftext|>","single_word":false,"lstrip":false,"rstrip":true,"normalized":false,"special":true}],"normalizer":{"type":"NFC"},"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},"post_processor":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":false,"use_regex":true},"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"ignore_merges":false,"vocab":{"R":0,"O":1,"RO":2,"e":3,"n":4},"merges":["R O"]}}
{"version":"1.0","added_tokens":[{"id":0,"content":"<unk>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"_"},{"type":"Replace","pattern":{"String":" "},"content":"_"}]},"pre_tokenizer":null,"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<unk>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":1}}],"special_tokens":{"<unk>":{"id":"<unk>","ids":[0],"tokens":["<unk>"]}}},"decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"_"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]},"model":{"type":"BPE","dropout":null,"unk_token":"<unk>","continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":true,"byte_fallback":true,"ignore_merges":true,"vocab":{"<unk>":0,"<0xC3>":1,"<0xA9>":2,"_":3,"o":4,"_o":5},"merges":[["_","o"]]}}
{"version":"1.0","added_tokens":[],"normalizer":{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,"lowercase":true},"pre_tokenizer":{"type":"BertPreTokenizer"},"post_processor":{"type":"BertProcessing","sep":["[SEP]",2],"cls":["[CLS]",1]},"decoder":{"type":"WordPiece","prefix":"##","cleanup":true},"model":{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##","max_input_chars_per_word":100,"vocab":{"[UNK]":0,"[CLS]":1,"[SEP]":2,"end":3,"##n":4,"e":5}}}
{"version":"1.0","added_tokens":[],"normalizer":{"type":"Sequence","normalizers":[{"type":"NFKD"},{"type":"StripAccents"},{"type":"Lowercase"}]},"pre_tokenizer":{"type":"Metaspace","replacement":"_","prepend_scheme":"always","split":true},"post_processor":null,"decoder":{"type":"Metaspace","replacement":"_","prepend_scheme":"always","split":true},"model":{"type":"Unigram","unk_id":0,"vocab":[["<unk>",0.0],["_",-1.5],["_e",-2.0],["nd",-3.25]],"byte_fallback":false}}
{"version":"1.0","added_tokens":[],"normalizer":null,"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"\\p{L}+|\\s+(?!\\S)"},"behavior":"Isolated","invert":false},{"type":"Digits","individual_digits":true},{"type":"Punctuation","behavior":"Contiguous"},{"type":"Whitespace"}]},"post_processor":{"type":"RobertaProcessing","sep":["</s>",2],"cls":["<s>",1],"trim_offsets":true,"add_prefix_space":false},"decoder":{"type":"CTC","pad_token":"<pad>","word_delimiter_token":"|","cleanup":true},"model":{"type":"WordLevel","vocab":{"<unk>":0,"<s>":1,"</s>":2,"end":3,"ROMEO":4},"unk_token":"<unk>"}}
TOKENIZERS

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
