//! A model as a graph, with symbolic batch and sequence.

use std::collections::BTreeMap;

use snlp_passes::ir::{
    Attention, Binary, DType, Dim, Graph, Op, ScatterReduction, Tensor, Type, Unary, ValueId,
};

use crate::spec::{
    Activation, Blocks, EPSILON, Matrix, Mlp, Model, Norm, NormWeights, Placement, Prefix, Side,
};

/// Bits of the operand orders that hold for a whole model.
pub mod order {
    pub const INNER_SUM: usize = 24;
    pub const MAP: usize = 25;
    pub const BIAS: usize = 26;
    pub const FACTOR: usize = 27;
    pub const SHARED_NORM: usize = 28;
    pub const TAP_AS_SUM: usize = 29;
}

/// The graph of a model and its inputs by name.
pub fn build(model: &Model) -> (Graph, BTreeMap<String, Tensor>) {
    let mut build = Build {
        graph: Graph::new("random"),
        model,
        inputs: BTreeMap::new(),
        b: Dim::symbol("batch"),
        t: Dim::symbol("seq"),
        shared: BTreeMap::new(),
    };
    build.model();
    (build.graph, build.inputs)
}

/// A float tensor of the model's dtype.
pub fn tensor(dtype: DType, shape: &[usize], data: &[f64]) -> Tensor {
    match dtype {
        DType::F64 => Tensor::from_vec(shape.to_vec(), data.to_vec()),
        _ => Tensor::from_vec(shape.to_vec(), data.iter().map(|x| *x as f32).collect()),
    }
    .expect("fits")
}

struct Build<'m> {
    graph: Graph,
    model: &'m Model,
    inputs: BTreeMap<String, Tensor>,
    b: Dim,
    t: Dim,
    /// Inputs that several layers read.
    shared: BTreeMap<String, ValueId>,
}

impl Build<'_> {
    fn op(&mut self, op: Op, inputs: &[ValueId]) -> ValueId {
        self.graph.add(op, inputs).expect("well typed")
    }

    fn binary(&mut self, op: Binary, a: ValueId, b: ValueId) -> ValueId {
        self.op(Op::Binary(op), &[a, b])
    }

    /// `a + b` or `b + a`.
    fn sum(&mut self, swapped: bool, a: ValueId, b: ValueId) -> ValueId {
        let (a, b) = if swapped { (b, a) } else { (a, b) };
        self.binary(Binary::Add, a, b)
    }

    fn scale(&mut self, x: ValueId, factor: f64) -> ValueId {
        let factor = self.graph.float_scalar(self.model.spec.dtype, factor);
        let swapped = self.model.spec.swapped(order::FACTOR);
        let (a, b) = if swapped { (factor, x) } else { (x, factor) };
        self.binary(Binary::Mul, a, b)
    }

    fn constant(&mut self, name: &str, shape: &[usize], data: &[f64]) -> ValueId {
        let tensor = tensor(self.model.spec.dtype, shape, data);
        self.graph.named_constant(name, tensor)
    }

    fn product(&mut self, name: &str, x: ValueId, w: &Matrix) -> ValueId {
        let w = self.constant(name, &[w.rows, w.cols], &w.data);
        self.op(Op::MatMul, &[x, w])
    }

    /// A float input, made once per name.
    fn input(&mut self, name: &str, dims: &[Dim], shape: &[usize], data: &[f64]) -> ValueId {
        if let Some(v) = self.shared.get(name) {
            return *v;
        }
        let dtype = self.model.spec.dtype;
        let v = self.graph.add_input(name, Type::new(dtype, dims.to_vec()));
        self.inputs.insert(name.into(), tensor(dtype, shape, data));
        self.shared.insert(name.into(), v);
        v
    }

    fn per_position(&mut self, name: &str, width: usize, data: &[f64]) -> ValueId {
        let dims = [self.b.clone(), self.t.clone(), Dim::from(width)];
        let shape = [self.model.spec.batch, self.model.spec.seq, width];
        self.input(name, &dims, &shape, data)
    }

    fn ids(&mut self) -> ValueId {
        if let Some(v) = self.shared.get("ids") {
            return *v;
        }
        let v = self.graph.add_input("ids", Type::new(DType::I64, vec![self.b.clone(), self.t.clone()]));
        let ids: Vec<i64> = self.model.ids.iter().map(|i| *i as i64).collect();
        let shape = vec![self.model.spec.batch, self.model.spec.seq];
        self.inputs.insert("ids".into(), Tensor::from_vec(shape, ids).expect("fits"));
        self.shared.insert("ids".into(), v);
        v
    }

    fn norm(&mut self, name: &str, x: ValueId, w: &NormWeights) -> ValueId {
        let n = w.scale.len();
        let epsilon = EPSILON as f32;
        let scale = self.constant(&format!("{name}.scale"), &[n], &w.scale);
        match self.model.spec.norm {
            Norm::Rms => self.op(Op::RmsNorm { axis: 2, epsilon }, &[x, scale]),
            Norm::Layer => {
                let bias = self.constant(&format!("{name}.bias"), &[n], &w.bias);
                self.op(Op::LayerNorm { axis: 2, epsilon }, &[x, scale, bias])
            }
        }
    }

    fn model(&mut self) {
        let spec = &self.model.spec;
        let d = spec.hidden;
        let x0 = match spec.prefix {
            Prefix::Embedding => {
                let table = &self.model.embedding;
                let table = self.constant("embedding", &[table.rows, table.cols], &table.data);
                let ids = self.ids();
                self.op(Op::Gather { axis: 0 }, &[table, ids])
            }
            prefix => {
                let x = self.per_position("x", d, &self.model.x);
                match prefix {
                    Prefix::Norm => self.norm("prefix", x, &self.model.prefix_norm),
                    Prefix::Scale => self.scale(x, 0.5),
                    _ => x,
                }
            }
        };
        let mut states = vec![x0];
        for l in 0..spec.layers.len() {
            let next = self.layer(l, states[l], x0);
            states.push(next);
        }
        let mut end = states[spec.layers.len()];
        for (i, tap) in spec.taps.iter().enumerate() {
            let state = states[tap.after_layer];
            match tap.factor {
                None => self.graph.add_output(&format!("hidden.{i}"), state),
                Some(c) if spec.swapped(order::TAP_AS_SUM) => {
                    let scaled = self.scale(state, -c);
                    end = self.sum(i == 1, end, scaled);
                }
                Some(c) => {
                    let scaled = self.scale(state, c);
                    end = self.binary(Binary::Sub, end, scaled);
                }
            }
        }
        let y = self.norm("final", end, &self.model.final_norm);
        self.graph.add_output("y", y);
    }

    fn layer(&mut self, l: usize, h: ValueId, x0: ValueId) -> ValueId {
        let spec = &self.model.spec;
        let layer = spec.layers[l];
        let mut x = h;
        if let Some((lambda, mu)) = layer.map {
            let a = self.scale(h, lambda);
            let b = self.scale(x0, mu);
            x = self.sum(spec.swapped(order::MAP), a, b);
        }
        let mlps = &self.model.layers[l].mlps;
        match layer.blocks {
            Blocks::Attention | Blocks::AttentionMlp | Blocks::AttentionMlpMlp => {
                let attention = self.attention(l, x).0;
                x = self.join(l, 0, x, attention);
                for (i, mlp) in mlps.iter().enumerate() {
                    let branch = self.mlp(l, i, mlp, x, None);
                    x = self.join(l, i + 1, x, branch);
                }
                x
            }
            parallel => {
                let (attention, norm) = self.attention(l, x);
                let norm = spec.swapped(order::SHARED_NORM).then_some(norm);
                let mlp = self.mlp(l, 0, &mlps[0], x, norm);
                let (first, second) = match parallel {
                    Blocks::ParallelSum => {
                        let both = self.sum(spec.swapped(order::INNER_SUM), attention, mlp);
                        return self.join(l, 0, x, both);
                    }
                    Blocks::ParallelNested => (attention, mlp),
                    _ => (mlp, attention),
                };
                x = self.join(l, 0, x, first);
                self.join(l, 1, x, second)
            }
        }
    }

    fn join(&mut self, l: usize, i: usize, x: ValueId, branch: ValueId) -> ValueId {
        let spec = &self.model.spec;
        let sum = self.sum(spec.swapped(3 * l + i), x, branch);
        match spec.placement {
            Placement::Pre => sum,
            Placement::Post => {
                let weights = &self.model.layers[l];
                let norm = if i == 0 { &weights.norm } else { &weights.mlps[i - 1].norm };
                self.norm(&format!("{l}.norm{i}"), sum, norm)
            }
        }
    }

    fn branch_norm(&mut self, name: &str, x: ValueId, w: &NormWeights) -> ValueId {
        match self.model.spec.placement {
            Placement::Pre => self.norm(name, x, w),
            Placement::Post => x,
        }
    }

    fn bias(&mut self, name: &str, x: ValueId, bias: &[f64]) -> ValueId {
        if !self.model.spec.bias {
            return x;
        }
        let bias = self.constant(name, &[bias.len()], bias);
        self.sum(self.model.spec.swapped(order::BIAS), x, bias)
    }

    fn mlp(&mut self, l: usize, i: usize, w: &Mlp, x: ValueId, norm: Option<ValueId>) -> ValueId {
        let name = format!("{l}.mlp{i}");
        let x = match norm {
            Some(x) => x,
            None => self.branch_norm(&format!("{name}.norm"), x, &w.norm),
        };
        if self.model.spec.routed { self.routed(&name, w, x) } else { self.mlp_of(&name, w, x) }
    }

    /// The MLP of all rows, of those whose first feature is positive and of the others in turn.
    fn routed(&mut self, name: &str, w: &Mlp, x: ValueId) -> ValueId {
        let d = Dim::from(self.model.spec.hidden);
        let rows = self.reshaped(x, &[self.b.clone() * self.t.clone(), d.clone()]);
        let (from, to) = (self.graph.ints(&[0]), self.graph.ints(&[1]));
        let first = self.op(Op::Slice { axes: vec![1], steps: vec![1] }, &[rows, from, to]);
        let first = self.op(Op::Squeeze { axes: vec![1] }, &[first]);
        let zero = self.graph.float_scalar(self.model.spec.dtype, 0.0);
        let positive = self.binary(Binary::Greater, first, zero);
        let others = self.op(Op::Unary(Unary::Not), &[positive]);
        let mut y = self.scale(rows, 0.0);
        for chosen in [positive, others] {
            let at = self.op(Op::NonZero, &[chosen]);
            let at = self.op(Op::Transpose { perm: vec![1, 0] }, &[at]);
            let part = self.op(Op::GatherNd { batch_dims: 0 }, &[rows, at]);
            let part = self.mlp_of(name, w, part);
            y = self.op(Op::ScatterNd { reduction: ScatterReduction::None }, &[y, at, part]);
        }
        self.reshaped(y, &[self.b.clone(), self.t.clone(), d])
    }

    fn mlp_of(&mut self, name: &str, w: &Mlp, x: ValueId) -> ValueId {
        let x = self.product(&format!("{name}.up"), x, &w.up);
        let x = self.bias(&format!("{name}.up_bias"), x, &w.up_bias);
        let activation = match self.model.spec.activation {
            Activation::Relu => Unary::Relu,
            Activation::GeluErf => Unary::GeluErf,
        };
        let x = self.op(Op::Unary(activation), &[x]);
        let x = self.product(&format!("{name}.down"), x, &w.down);
        self.bias(&format!("{name}.down_bias"), x, &w.down_bias)
    }

    /// The branch and the normalised state that it reads.
    fn attention(&mut self, l: usize, x: ValueId) -> (ValueId, ValueId) {
        let spec = &self.model.spec;
        let w = &self.model.layers[l];
        let head = spec.hidden / spec.heads;
        let kv = head * spec.kv_heads;
        let normed = self.branch_norm(&format!("{l}.norm"), x, &w.norm);
        let (q, k, mut v) = if spec.packed {
            let columns = |r: usize| {
                [&w.q, &w.k, &w.v].into_iter().flat_map(move |m| m.data[r * m.cols..][..m.cols].to_vec())
            };
            let data: Vec<f64> = (0..spec.hidden).flat_map(columns).collect();
            let packed = Matrix { rows: spec.hidden, cols: spec.hidden + 2 * kv, data };
            let all = self.product(&format!("{l}.qkv"), normed, &packed);
            let d = spec.hidden;
            (self.columns(all, 0, d), self.columns(all, d, d + kv), self.columns(all, d + kv, d + 2 * kv))
        } else {
            let q = self.product(&format!("{l}.q"), normed, &w.q);
            let k = self.product(&format!("{l}.k"), normed, &w.k);
            (q, k, self.product(&format!("{l}.v"), normed, &w.v))
        };
        let side = match spec.layers[l].side {
            Side::None | Side::SharedGate => None,
            Side::SharedValue => Some(self.per_position("side", kv, &self.model.shared_side)),
            Side::OwnValue => Some(self.per_position(&format!("side.{l}"), kv, &w.own_side)),
            Side::GatedTable => {
                let table = self.constant(&format!("{l}.table"), &[w.table.rows, kv], &w.table.data);
                let ids = self.ids();
                let side = self.op(Op::Gather { axis: 0 }, &[table, ids]);
                let gate = self.product(&format!("{l}.gate"), normed, &w.gate);
                let gate = self.op(Op::Unary(Unary::Sigmoid), &[gate]);
                Some(self.binary(Binary::Mul, gate, side))
            }
        };
        if let Some(side) = side {
            v = self.binary(Binary::Add, v, side);
        }
        let mut y = self.heads_mixed(l, q, k, v);
        if spec.layers[l].side == Side::SharedGate {
            let gate = self.per_position("gate", spec.hidden, &self.model.shared_gate);
            y = self.binary(Binary::Mul, y, gate);
        }
        let y = self.product(&format!("{l}.o"), y, &w.o);
        (self.bias(&format!("{l}.o_bias"), y, &w.o_bias), normed)
    }

    fn columns(&mut self, x: ValueId, from: usize, to: usize) -> ValueId {
        let (from, to) = (self.graph.ints(&[from as i64]), self.graph.ints(&[to as i64]));
        self.op(Op::Slice { axes: vec![2], steps: vec![1] }, &[x, from, to])
    }

    fn reshaped(&mut self, x: ValueId, dims: &[Dim]) -> ValueId {
        let shape = self.graph.dims(dims).expect("well typed");
        self.op(Op::Reshape { allow_zero: true }, &[x, shape])
    }

    /// `[b, t, n·head]` to `[b, n, t, head]`, or with `perm` to another order.
    fn split_heads(&mut self, x: ValueId, n: usize, perm: [usize; 4]) -> ValueId {
        let head = self.model.spec.hidden / self.model.spec.heads;
        let dims = [self.b.clone(), self.t.clone(), Dim::from(n), Dim::from(head)];
        let x = self.reshaped(x, &dims);
        self.op(Op::Transpose { perm: perm.to_vec() }, &[x])
    }

    /// Heads `x [b, n, t, head]` behind those of earlier calls, which become an output.
    fn cached(&mut self, name: &str, x: ValueId) -> ValueId {
        let spec = &self.model.spec;
        if !spec.cached {
            return x;
        }
        let (n, head) = (spec.kv_heads, spec.hidden / spec.heads);
        let dims = [self.b.clone(), Dim::from(n), Dim::symbol("past"), Dim::from(head)];
        let past = self.input(&format!("past.{name}"), &dims, &[spec.batch, n, 0, head], &[]);
        let present = self.op(Op::Concat { axis: 2 }, &[past, x]);
        self.graph.add_output(&format!("present.{name}"), present);
        present
    }

    fn heads_mixed(&mut self, l: usize, q: ValueId, k: ValueId, v: ValueId) -> ValueId {
        let spec = &self.model.spec;
        let scale = 1.0 / ((spec.hidden / spec.heads) as f64).sqrt();
        let q = self.split_heads(q, spec.heads, [0, 2, 1, 3]);
        let v = self.split_heads(v, spec.kv_heads, [0, 2, 1, 3]);
        let v = self.cached(&format!("{l}.value"), v);
        let mask = spec.mask.then(|| {
            let dims = [self.b.clone(), Dim::ONE, self.t.clone(), self.t.clone()];
            let shape = [spec.batch, 1, spec.seq, spec.seq];
            self.input("mask", &dims, &shape, &self.model.mask)
        });
        let y = if spec.fused_attention {
            let k = self.split_heads(k, spec.kv_heads, [0, 2, 1, 3]);
            let k = self.cached(&format!("{l}.key"), k);
            let op = Op::Attention(Attention {
                scale: scale as f32,
                causal: spec.causal,
                window: None,
                softcap: None,
                safe: false,
            });
            let operands: Vec<ValueId> = [q, k, v].into_iter().chain(mask).collect();
            self.op(op, &operands)
        } else {
            let k = self.split_heads(k, spec.kv_heads, [0, 2, 3, 1]);
            let scores = self.op(Op::MatMul, &[q, k]);
            let mut scores = self.scale(scores, scale);
            if let Some(mask) = mask {
                scores = self.binary(Binary::Add, scores, mask);
            }
            let weights = self.op(Op::Softmax { axis: 3 }, &[scores]);
            self.op(Op::MatMul, &[weights, v])
        };
        let y = self.op(Op::Transpose { perm: vec![0, 2, 1, 3] }, &[y]);
        let dims = [self.b.clone(), self.t.clone(), Dim::from(spec.hidden)];
        self.reshaped(y, &dims)
    }
}
