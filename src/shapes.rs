//! Models of chosen sizes with random weights, so that times can be taken without a download.
//!
//! ```text
//!   d12-w256-h4-v32768          12 layers of width 256, 4 heads, 32768 tokens, in nanochat's style
//!   d32-w640-llama              heads of 64 features, Llama's style
//!   d16-w2048-h32-g8-f8192-v128256-llama    four heads share keys and values, 8192 features in the MLP
//! ```
//!
//! All are pre-norm decoders. nanochat: rotary positions, norms without weights, normalised queries and keys, a squared
//! ReLU over 4 times the width. Llama: rotary positions, norms with weights, SwiGLU over 8/3 of the width. GPT-2: a table
//! of positions, layer norms, one product for queries, keys and values, biases, GELU over 4 times the width.

use std::str::FromStr;

use snlp_passes::ir::{
    Attention, Binary, DType, Dim, Graph, Op, Rotary, RotaryTable, Tensor, Type, Unary, ValueId,
};

use crate::error::{Error, Kind};
use crate::onnx::{Model, ModelInfo};

/// Positions that the model has.
pub const POSITIONS: usize = 4096;

/// How a layer is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    /// Norms without weights, squared ReLU.
    Nanochat,
    /// Norms with weights, SwiGLU.
    Llama,
    /// Layer norms, biases, GELU.
    Gpt2,
}

/// Sizes of a model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Layers.
    pub layers: usize,
    /// Features of the state.
    pub width: usize,
    /// Heads; each has `width / heads` features, an even number.
    pub heads: usize,
    /// Heads of keys and values, a divisor of `heads`.
    pub key_heads: usize,
    /// Features of the MLP.
    pub inner: usize,
    /// Tokens.
    pub vocabulary: usize,
    /// How a layer is made.
    pub style: Style,
}

/// Largest number in a shape.
const MOST: usize = 1 << 20;

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (style, vocabulary) = (Style::Nanochat, 32_768);
        let mut shape = Shape { layers: 0, width: 0, heads: 0, key_heads: 0, inner: 0, vocabulary, style };
        for part in text.split('-') {
            let number = |digits: &str| match digits.parse::<usize>() {
                Ok(n) if (1..=MOST).contains(&n) => Ok(n),
                _ => Err(format!("'{part}' has no number from 1 to {MOST} behind its letter")),
            };
            match part {
                "nanochat" => shape.style = Style::Nanochat,
                "llama" => shape.style = Style::Llama,
                "gpt2" => shape.style = Style::Gpt2,
                _ => match part.split_at_checked(1) {
                    Some(("d", n)) => shape.layers = number(n)?,
                    Some(("w", n)) => shape.width = number(n)?,
                    Some(("h", n)) => shape.heads = number(n)?,
                    Some(("g", n)) => shape.key_heads = number(n)?,
                    Some(("f", n)) => shape.inner = number(n)?,
                    Some(("v", n)) => shape.vocabulary = number(n)?,
                    _ => {
                        return Err(format!(
                            "'{part}' is no part of a shape; write layers, width, heads and vocabulary as \
                             d12-w256-h4-v32768, -g2 for heads of keys, -f1024 for features of the MLP, and -llama or \
                             -gpt2 for that style"
                        ));
                    }
                },
            }
        }
        if shape.layers == 0 || shape.width == 0 {
            return Err("a shape needs layers and width, such as d12-w256".into());
        }
        if shape.heads == 0 {
            shape.heads = (shape.width / 64).max(1);
        }
        if !shape.width.is_multiple_of(2 * shape.heads) {
            return Err(format!(
                "{} features cannot be divided into {} heads of an even number",
                shape.width, shape.heads
            ));
        }
        if shape.key_heads == 0 {
            shape.key_heads = shape.heads;
        }
        if !shape.heads.is_multiple_of(shape.key_heads) {
            return Err(format!("{} heads cannot share {} of keys and values", shape.heads, shape.key_heads));
        }
        if shape.style == Style::Gpt2 && shape.key_heads != shape.heads {
            return Err("heads of GPT-2 have keys and values of their own; leave -g away".into());
        }
        if shape.inner == 0 {
            shape.inner = match shape.style {
                Style::Nanochat | Style::Gpt2 => 4 * shape.width,
                // Rounded up to 64, as usual.
                Style::Llama => (8 * shape.width / 3).next_multiple_of(64),
            };
        }
        Ok(shape)
    }
}

impl Shape {
    /// The model, with weights from a seeded generator. Input `input_ids` int64 `[batch, sequence]`, output `logits`
    /// f32 `[batch, sequence, vocabulary]`.
    ///
    /// # Errors
    /// When a weight would be too large.
    pub fn model(&self) -> Result<Model, Error> {
        let mut build =
            Build { shape: *self, graph: Graph::new("shape"), random: fastrand::Rng::with_seed(0) };
        build.model().map_err(|e| {
            Error::new(Kind::Internal, "the model of this shape cannot be built")
                .because(e)
                .help("use a smaller shape")
        })?;
        Ok(Model { graph: build.graph, info: ModelInfo::standard(18) })
    }
}

struct Build {
    shape: Shape,
    graph: Graph,
    random: fastrand::Rng,
}

/// What a construction may fail with: tensors and nodes that do not fit.
type Fault = Box<dyn std::error::Error + Send + Sync>;

/// A step of the construction.
type Made = Result<ValueId, Fault>;

impl Build {
    fn model(&mut self) -> Result<(), Fault> {
        let Shape { layers, width, heads, vocabulary, .. } = self.shape;
        let (batch, sequence) = (Dim::symbol("batch"), Dim::symbol("sequence"));
        let ids = self.graph.add_input("input_ids", Type::new(DType::I64, vec![batch, sequence.clone()]));
        let table = self.weight("embedding", &[vocabulary, width], 1.0)?;
        let mut x = self.graph.add_named("embedding", Op::Gather { axis: 0 }, &[table, ids])?;
        let tables = match self.shape.style {
            Style::Gpt2 => {
                let positions = self.weight("positions", &[POSITIONS, width], 0.1)?;
                let positions = self.cut(positions, &sequence)?;
                x = self.sum("embedding_sum", x, positions)?;
                None
            }
            _ => Some(self.rotary(width / heads, &sequence)?),
        };
        for layer in 0..layers {
            x = self.layer(layer, x, tables)?;
        }
        x = self.norm("norm", x)?;
        let logits = self.product("head", x, vocabulary)?;
        self.graph.add_output("logits", logits);
        Ok(())
    }

    fn layer(&mut self, layer: usize, x: ValueId, tables: Option<[ValueId; 2]>) -> Made {
        let Shape { width, style, inner, .. } = self.shape;
        let name = |part: &str| format!("layers.{layer}/{part}");
        let normed = self.norm(&name("attention_norm"), x)?;
        let attended = self.attention(&name("attention"), normed, tables)?;
        let x = self.sum(&name("attention_sum"), x, attended)?;
        let normed = self.norm(&name("mlp_norm"), x)?;
        let inner = match style {
            Style::Nanochat => {
                let up = self.product(&name("mlp/up"), normed, inner)?;
                let relu = self.graph.add_named(&name("mlp/relu"), Op::Unary(Unary::Relu), &[up])?;
                self.graph.add_named(&name("mlp/square"), Op::Binary(Binary::Mul), &[relu, relu])?
            }
            Style::Llama => {
                let gate = self.product(&name("mlp/gate"), normed, inner)?;
                let up = self.product(&name("mlp/up"), normed, inner)?;
                let gate = self.graph.add_named(&name("mlp/silu"), Op::Unary(Unary::Silu), &[gate])?;
                self.graph.add_named(&name("mlp/gated"), Op::Binary(Binary::Mul), &[gate, up])?
            }
            Style::Gpt2 => {
                let up = self.product(&name("mlp/up"), normed, inner)?;
                self.graph.add_named(&name("mlp/gelu"), Op::Unary(Unary::GeluTanh), &[up])?
            }
        };
        let down = self.product(&name("mlp/down"), inner, width)?;
        self.sum(&name("mlp_sum"), x, down)
    }

    fn attention(&mut self, name: &str, x: ValueId, tables: Option<[ValueId; 2]>) -> Made {
        let Shape { width, heads, key_heads, style, .. } = self.shape;
        let size = width / heads;
        let (batch, sequence) = (Dim::symbol("batch"), Dim::symbol("sequence"));
        let dims = [batch, sequence, Dim::from(heads), Dim::from(size)];
        let together = match style {
            Style::Gpt2 => Some(self.product(&format!("{name}/qkv"), x, 3 * width)?),
            _ => None,
        };
        let mut parts = vec![];
        for (i, part) in (0..).zip(["q", "k", "v"]) {
            let count = if part == "q" { heads } else { key_heads };
            let y = match together {
                Some(all) => {
                    let (start, end) =
                        (self.graph.ints(&[i * width as i64]), self.graph.ints(&[(i + 1) * width as i64]));
                    self.graph.add(Op::Slice { axes: vec![2], steps: vec![1] }, &[all, start, end])?
                }
                None => self.product(&format!("{name}/{part}"), x, count * size)?,
            };
            let split = [dims[0].clone(), dims[1].clone(), Dim::from(count), dims[3].clone()];
            let shape = self.graph.dims(&split)?;
            let y = self.graph.add(Op::Reshape { allow_zero: true }, &[y, shape])?;
            let mut y = self.graph.add(Op::Transpose { perm: vec![0, 2, 1, 3] }, &[y])?;
            if let Some([cos, sin]) = tables.filter(|_| part != "v") {
                let rotary = Rotary { interleaved: false, table: RotaryTable::Half };
                y = self.graph.add_named(
                    &format!("{name}/rotary_{part}"),
                    Op::Rotary(rotary),
                    &[y, cos, sin],
                )?;
                if style == Style::Nanochat {
                    let norm = Op::RmsNorm { axis: 3, epsilon: 1e-6 };
                    y = self.graph.add_named(&format!("{name}/norm_{part}"), norm, &[y])?;
                }
            }
            parts.push(y);
        }
        let scale = 1.0 / (size as f32).sqrt();
        let attention = Attention { scale, causal: true, window: None, softcap: None, safe: false };
        let y = self.graph.add_named(&format!("{name}/attend"), Op::Attention(attention), &parts)?;
        let y = self.graph.add(Op::Transpose { perm: vec![0, 2, 1, 3] }, &[y])?;
        let shape = self.graph.dims(&[dims[0].clone(), dims[1].clone(), Dim::from(width)])?;
        let y = self.graph.add(Op::Reshape { allow_zero: true }, &[y, shape])?;
        self.product(&format!("{name}/out"), y, width)
    }

    /// Cosines and sines of the positions, `[sequence, size / 2]` each, cut from tables.
    fn rotary(&mut self, size: usize, sequence: &Dim) -> Result<[ValueId; 2], Fault> {
        let half = size / 2;
        let angle = |i: usize| {
            let (position, pair) = (i / half, i % half);
            position as f64 * 10_000f64.powf(-(pair as f64) / half as f64)
        };
        let mut out = vec![];
        for of in [f64::cos, f64::sin] {
            let data: Vec<f32> = (0..POSITIONS * half).map(|i| of(angle(i)) as f32).collect();
            let table = self.constant(&[POSITIONS, half], data)?;
            out.push(self.cut(table, sequence)?);
        }
        Ok([out[0], out[1]])
    }

    /// The rows of a table that the sequence has.
    fn cut(&mut self, table: ValueId, sequence: &Dim) -> Made {
        let (start, end) = (self.graph.ints(&[0]), self.graph.dims(std::slice::from_ref(sequence))?);
        Ok(self.graph.add(Op::Slice { axes: vec![0], steps: vec![1] }, &[table, start, end])?)
    }

    fn norm(&mut self, name: &str, x: ValueId) -> Made {
        let op = Op::RmsNorm { axis: 2, epsilon: 1e-6 };
        match self.shape.style {
            Style::Nanochat => Ok(self.graph.add_named(name, op, &[x])?),
            Style::Llama => {
                let weight = self.constant(&[self.shape.width], vec![1.0; self.shape.width])?;
                Ok(self.graph.add_named(name, op, &[x, weight])?)
            }
            Style::Gpt2 => {
                let width = self.shape.width;
                let weight = self.constant(&[width], vec![1.0; width])?;
                let bias = self.constant(&[width], vec![0.0; width])?;
                let op = Op::LayerNorm { axis: 2, epsilon: 1e-5 };
                Ok(self.graph.add_named(name, op, &[x, weight, bias])?)
            }
        }
    }

    fn product(&mut self, name: &str, x: ValueId, columns: usize) -> Made {
        let rows = self.graph.shape(x).and_then(|s| s.last()?.known_size()).unwrap_or(self.shape.width);
        let weight = self.weight(name, &[rows, columns], (rows as f32).sqrt().recip())?;
        let product = self.graph.add_named(name, Op::MatMul, &[x, weight])?;
        if self.shape.style != Style::Gpt2 || name == "head" {
            return Ok(product);
        }
        let bias = self.weight(&format!("{name}.bias"), &[columns], 0.1)?;
        self.sum(&format!("{name}.sum"), product, bias)
    }

    fn sum(&mut self, name: &str, a: ValueId, b: ValueId) -> Made {
        Ok(self.graph.add_named(name, Op::Binary(Binary::Add), &[a, b])?)
    }

    fn weight(&mut self, name: &str, shape: &[usize], scale: f32) -> Made {
        let data = (0..shape.iter().product()).map(|_| (self.random.f32() * 2.0 - 1.0) * scale).collect();
        let value = self.constant(shape, data)?;
        self.graph.set_name(value, &format!("{name}.weight"));
        Ok(value)
    }

    fn constant(&mut self, shape: &[usize], data: Vec<f32>) -> Made {
        let tensor = Tensor::from_vec(shape.to_vec(), data)?;
        Ok(self.graph.constant(tensor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language::decoder::Stepper;
    use crate::source::{Source, parse_plan};
    use snlp_passes::analysis::Kind as Style;

    #[test]
    fn shapes_are_read_with_defaults() {
        let shape = |text: &str| text.parse::<Shape>();
        let full = Shape {
            layers: 12,
            width: 256,
            heads: 4,
            key_heads: 4,
            inner: 1024,
            vocabulary: 32_768,
            style: super::Style::Nanochat,
        };
        assert_eq!(shape("d12-w256"), Ok(full));
        assert_eq!(shape("d12-w256-h4-v32768-nanochat"), Ok(full));
        let llama = Shape { style: super::Style::Llama, inner: 704, ..full };
        assert_eq!(shape("w256-d12-llama"), Ok(llama));
        assert_eq!(shape("w256-d12-g2-f9-llama"), Ok(Shape { key_heads: 2, inner: 9, ..llama }));
        for (text, part) in [
            ("d12", "layers and width"),
            ("d12-w256-x3", "no part of a shape"),
            ("d0-w256", "no number"),
            ("d1-w30-h4", "heads of an even number"),
            ("d1-wide", "no number"),
            ("d1-w64-h4-g3", "cannot share 3"),
            ("d1-w64-h4-g2-gpt2", "of their own"),
            ("", "no part of a shape"),
            ("d1-w99999999999999999999", "no number"),
        ] {
            assert!(shape(text).is_err_and(|e| e.contains(part)), "{text}");
        }
    }

    #[test]
    fn models_have_a_chain_and_a_cached_step() {
        for text in ["d3-w32-h2-v50", "d3-w32-h2-g1-v50-llama", "d3-w32-h2-v50-gpt2"] {
            let shape: Shape = text.parse().expect("a shape");
            let source = Source::of("shape".as_ref(), shape.model().expect("built")).expect("clean");
            let chain = source.chain().expect("a chain");
            assert_eq!((chain.layers.len(), chain.classes.len(), chain.kind), (3, 1, Style::PreNorm));
            let one = source.of_one_sequence().expect("takes one sequence");
            for plan in ["sequential", "3xF1", "1xF2"] {
                let placed = one.place(&parse_plan(plan).expect("a plan")).expect("fits");
                let (stepper, why) = Stepper::new(&one, &placed, 64).expect("applies");
                assert!(stepper.is_cached(), "{text} {plan}: {why:?}");
            }
        }
    }
}
