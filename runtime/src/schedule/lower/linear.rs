//! Matrix products with their epilogues, split where an operand is larger than a binding may be.

use snlp_passes::ir::{Node, NodeId, Op, ValueId};

use super::chain::{Added, Addend, Product};
use super::coded::Code;
use super::rows::Normed;
use super::{Bound, Done, Failure, Located, Lowering, unsupported};
use crate::kernels::{Activation, Coding, ElementOp, Matmul, Operand, Part, Program, Reg, RowNorm, View};
use crate::schedule::constants::scalar_bytes;
use crate::schedule::views;

/// A product over views of one rank: `a [batch.., contracted.., M, K]`, `b [.., K, N]`, and the rest of
/// the result's shape.
#[derive(Clone)]
pub(super) struct Operands {
    pub a: Located,
    pub b: Located,
    /// What the integers of `b` stand for, where it is quantised.
    code: Option<Code>,
    pub out: Located,
    pub bias: Option<Located>,
    activation: Activation,
    alpha: f32,
    pub residual: Option<Located>,
    contract: usize,
    accumulate: bool,
    /// The result as its readers see it.
    pub made: Located,
}

impl Operands {
    /// Nothing but a product.
    pub(super) fn plain(a: Located, b: Located, code: Option<Code>, out: Located) -> Self {
        Operands {
            a,
            b,
            code,
            out: out.clone(),
            bias: None,
            activation: Activation::None,
            alpha: 1.0,
            residual: None,
            contract: 0,
            accumulate: false,
            made: out,
        }
    }
}

fn view(at: &Located, view: Option<View>) -> Done<Located> {
    match view {
        Some(view) => Ok(Located { view, ..at.clone() }),
        None => unsupported(format!("{:?} cannot be viewed as the product needs it", at.view)),
    }
}

fn operand(bound: &Option<Bound>) -> Option<&Operand> {
    bound.as_ref().map(|b| &b.operand)
}

impl Product {
    /// Of something as wide as the whole product, the columns that are computed.
    pub(super) fn cut(&self, at: &Located) -> Done<Located> {
        let axis = at.view.shape.len().saturating_sub(1);
        match (self.columns, at.view.shape.last()) {
            (Some((start, count)), Some(wide)) if *wide != 1 => {
                view(at, views::slice(&at.view, axis, start, 1, count))
            }
            _ => Ok(at.clone()),
        }
    }
}

impl Lowering<'_> {
    /// Lowers the product whose last node is `id`.
    pub(super) fn product(&mut self, id: NodeId, last: &Node) -> Done {
        let name = self.name(last);
        let Some(product) = self.chains.products.get(&id).cloned() else {
            return self.scaled_gemm(&name, last);
        };
        let Some(node) = self.graph.node(product.node) else { return Ok(()) };
        if node.op == Op::MatMulInteger {
            return self.scaled_product(&name, node, &product);
        }
        if let Op::Gemm { alpha, .. } = &node.op
            && *alpha != 1.0
        {
            return self.scaled_gemm(&name, node);
        }
        let [Some(a), Some(b)] = [node.input(0), node.input(1)] else {
            return unsupported("an operand is missing");
        };
        let a = self.in_words(&name, a)?;
        let (a, b, code) = self.factors(node, a, b)?;
        let operands = self.arranged(&name, &product, (&a, &b, &code), product.out, None)?;
        self.multiply(&name, &operands)?;
        self.set(product.out, operands.made);
        Ok(())
    }

    /// A product's operands as the kernel needs them. Its result is that of `out`, in `made` where it is shared.
    pub(super) fn arranged(
        &mut self,
        name: &str,
        product: &Product,
        factors: (&Located, &Located, &Option<Code>),
        out: ValueId,
        made: Option<Located>,
    ) -> Done<Operands> {
        let made = match made {
            Some(made) => made,
            None => self.result(out)?,
        };
        match self.arrange_product(name, product, factors, &made) {
            // The layout that the reader would like does not suit the product.
            Err(Failure::Unsupported(_)) if !made.view.is_dense() => {
                let made = self.fresh(&made.view.shape.clone(), made.scalar);
                self.arrange_product(name, product, factors, &made)
            }
            done => done,
        }
    }

    /// Both factors with rank at least 2, transposed as a Gemm asks; the right one as integers with their
    /// coding where it is quantised.
    pub(super) fn factors(
        &mut self,
        node: &Node,
        mut a: Located,
        b: ValueId,
    ) -> Done<(Located, Located, Option<Code>)> {
        let transposed = matches!(node.op, Op::Gemm { trans_b: true, .. });
        let coded = self.coded.get(&b).and_then(|coded| coded.for_product(transposed));
        let (mut b, code) = match coded {
            Some((b, code)) => (b, Some(code)),
            None => (self.matrix(b)?, None),
        };
        if a.view.shape.len() == 1 {
            a = view(&a, views::unsqueeze(&a.view, &[0]))?;
        }
        if b.view.shape.len() == 1 {
            b = view(&b, views::unsqueeze(&b.view, &[1]))?;
        }
        if let Op::Gemm { trans_a, trans_b, .. } = node.op {
            for (factor, transposed) in [(&mut a, trans_a), (&mut b, trans_b && code.is_none())] {
                if transposed {
                    *factor = view(factor, views::transpose(&factor.view, &[1, 0]))?;
                }
            }
        }
        Ok((a, b, code))
    }

    fn arrange_product(
        &mut self,
        name: &str,
        product: &Product,
        (a, b, code): (&Located, &Located, &Option<Code>),
        made: &Located,
    ) -> Done<Operands> {
        let rank = a.view.shape.len().max(b.view.shape.len());
        let pad = |at: &Located| {
            let ones: Vec<usize> = (0..rank - at.view.shape.len()).collect();
            view(at, views::unsqueeze(&at.view, &ones))
        };
        let (a, b) = (pad(a)?, pad(b)?);
        let kept: Vec<usize> = (0..rank - 2).filter(|i| !product.contract.contains(i)).collect();
        let mut perm = kept.clone();
        perm.extend(&product.contract);
        perm.extend([rank - 2, rank - 1]);
        let turned = |at: &Located| view(at, views::transpose(&at.view, &perm));
        let (a, b) = (turned(&a)?, turned(&b)?);
        let code = match code {
            Some(code) => Some(code.map(|at| turned(&pad(at)?))?),
            None => None,
        };
        let mut shape: Vec<u32> = (0..kept.len())
            .map(|i| if a.view.shape[i] == 1 { b.view.shape[i] } else { a.view.shape[i] })
            .collect();
        shape.resize(kept.len() + product.contract.len(), 1);
        shape.extend([a.view.shape[rank - 2], b.view.shape[rank - 1]]);
        let to_out = |at: &Located| view(at, views::reshape(&at.view, &shape));
        let mut added = vec![];
        for addend in [&product.bias, &product.residual] {
            let Some(Addend { what, like }) = addend else {
                added.push(None);
                continue;
            };
            let at = match what {
                Added::Value(v) => self.located(*v)?,
                Added::Tensor(tensor) => self.literal(name, tensor)?,
            };
            let at = self.as_words(name, at)?;
            let at = if product.columns.is_some() { product.cut(&at)? } else { at };
            let full = self.shape(*like)?;
            let wide = view(&at, views::broadcast(&at.view, &full))?;
            added.push(Some(match to_out(&wide) {
                Ok(at) => at,
                Err(_) => {
                    let dense = self.copied(name, &wide)?;
                    to_out(&dense)?
                }
            }));
        }
        let residual = added.pop().flatten();
        let bias = added.pop().flatten();
        let out = to_out(made)?;
        Ok(Operands {
            a,
            b,
            code,
            out,
            bias,
            activation: product.activation,
            alpha: product.alpha,
            residual,
            contract: product.contract.len(),
            accumulate: false,
            made: made.clone(),
        })
    }

    /// Emits one product, or several over parts of it.
    fn multiply(&mut self, name: &str, o: &Operands) -> Done {
        if o.out.view.is_empty() {
            return Ok(());
        }
        if let Some((first, second)) = self.halves(o)? {
            self.multiply(name, &first)?;
            return self.multiply(name, &second);
        }
        self.multiply_parts(name, None, std::slice::from_ref(o), false)
    }

    /// Emits products of one left operand in one dispatch; of gated ones the first has the result.
    pub(super) fn multiply_parts(
        &mut self,
        name: &str,
        norm: Option<&Normed>,
        parts: &[Operands],
        gated: bool,
    ) -> Done {
        let Some(first) = parts.first() else { return Ok(()) };
        if parts.iter().all(|p| p.out.view.is_empty()) {
            return Ok(());
        }
        if parts.iter().any(|p| p.out.view.is_empty()) {
            return unsupported("a part without columns");
        }
        let maybe = |at: Option<&Located>| at.map(|at| self.bind(at)).transpose();
        let a = self.bind(&first.a)?;
        let scale = maybe(norm.and_then(|n| n.scale.as_ref()))?;
        let bias = maybe(norm.and_then(|n| n.bias.as_ref()))?;
        // Of each part, in the kernel's order.
        let mut bound = vec![];
        for o in parts {
            let code = o.code.as_ref();
            let read = [
                maybe(code.map(|c| &c.scale))?,
                maybe(code.and_then(|c| c.zero.as_ref()))?,
                maybe(o.bias.as_ref())?,
                maybe(o.residual.as_ref())?,
            ];
            bound.push((self.bind(&o.b)?, read, self.bind(&o.out)?));
        }
        let described = parts.iter().zip(&bound).map(|(o, (b, [scale, zero, bias, residual], out))| {
            let block = o.code.as_ref().map_or(1, |c| c.block);
            Part {
                coding: operand(scale).map(|scale| Coding { scale, zero: operand(zero), block }),
                bias: operand(bias),
                activation: o.activation,
                alpha: o.alpha,
                residual: operand(residual),
                ..Part::new(&b.operand, &out.operand)
            }
        });
        let launch = Matmul {
            a: &a.operand,
            norm: norm.map(|n| RowNorm {
                kind: n.kind,
                epsilon: n.epsilon,
                scale: operand(&scale),
                bias: operand(&bias),
            }),
            parts: described.collect(),
            gated,
            contract: first.contract,
            accumulate: first.accumulate,
        }
        .launch(self.limits)?;
        let mut all = vec![&a];
        all.extend([&scale, &bias].into_iter().flatten());
        all.extend(bound.iter().flat_map(|(b, read, _)| std::iter::once(b).chain(read.iter().flatten())));
        all.extend(bound.iter().take(if gated { 1 } else { parts.len() }).map(|(.., out)| out));
        self.emit(name, launch, &all)
    }

    /// Whether the range that a view touches exceeds one binding.
    fn too_large(&self, at: &Located) -> bool {
        let slot = self.plan.slots.get(at.slot).map_or(0, |s| s.bytes);
        let (start, end) = views::extent(&at.view);
        let slack = crate::schedule::PIECE_ALIGN;
        slot > self.limits.max_storage_binding
            && scalar_bytes(at.scalar, end - start) + slack > self.limits.max_storage_binding
    }

    /// The product in two parts when an operand is too large to bind: along a batch axis, else along the
    /// rows or columns, else along the contraction.
    fn halves(&self, o: &Operands) -> Done<Option<(Operands, Operands)>> {
        let rank = o.out.view.shape.len();
        let extras = [o.bias.as_ref(), o.residual.as_ref()];
        let large_out = self.too_large(&o.out) || extras.into_iter().flatten().any(|x| self.too_large(x));
        let (large_a, large_b) = (self.too_large(&o.a), self.too_large(&o.b));
        if !(large_out || large_a || large_b) {
            return Ok(None);
        }
        let (m, n, k) = (rank - 2, rank - 1, usize::MAX);
        let batch = (0..rank - 2 - o.contract).find(|i| o.out.view.shape[*i] > 1);
        let columns_outer = o.b.view.strides[rank - 1] > o.b.view.strides[rank - 2];
        let axis = match batch {
            Some(axis) => axis,
            None if (large_out || large_a) && o.out.view.shape[m] > 1 => m,
            None if (large_out || columns_outer) && o.out.view.shape[n] > 1 => n,
            None if o.contract == 0 => k,
            None => return unsupported("a contracted operand is larger than a binding of the device"),
        };
        let size = if axis == k { o.a.view.shape[rank - 1] } else { o.out.view.shape[axis] };
        // Partial sums must not pass through the activation.
        if axis == k && o.activation != Activation::None {
            return unsupported("an operand is larger than a binding and its product has an activation");
        }
        if size < 2 {
            return unsupported("an operand is larger than a binding of the device and cannot be split");
        }
        // A block has one scale.
        let block = o.code.as_ref().filter(|_| axis == k).map_or(1, |c| c.block);
        let middle = (size / 2).next_multiple_of(block).min(size - 1);
        if !middle.is_multiple_of(block) {
            return unsupported("an operand is larger than a binding of the device and has long blocks");
        }
        let part = |start: u32, count: u32| -> Done<Operands> {
            let cut_by = |at: &Located, axis: usize, start: u32, count: u32| match at.view.shape.get(axis) {
                Some(1) | None => Ok(at.clone()),
                Some(_) => view(at, views::slice(&at.view, axis, start, 1, count)),
            };
            let cut = |at: &Located, axis: usize| cut_by(at, axis, start, count);
            let mut part = o.clone();
            if axis == k {
                part.a = cut(&o.a, rank - 1)?;
                part.b = cut(&o.b, rank - 2)?;
                let entries = |at: &Located| cut_by(at, rank - 2, start / block, count.div_ceil(block));
                part.code = o.code.as_ref().map(|c| c.map(entries)).transpose()?;
                return Ok(part);
            }
            if axis != n {
                part.a = cut(&o.a, axis)?;
            }
            if axis != m {
                part.b = cut(&o.b, axis)?;
                part.code = o.code.as_ref().map(|c| c.map(|at| cut(at, axis))).transpose()?;
            }
            part.out = cut(&o.out, axis)?;
            part.bias = o.bias.as_ref().map(|x| cut(x, axis)).transpose()?;
            part.residual = o.residual.as_ref().map(|x| cut(x, axis)).transpose()?;
            Ok(part)
        };
        let (mut first, mut second) = (part(0, middle)?, part(middle, size - middle)?);
        if axis == k {
            (first.bias, first.residual) = (None, None);
            second.accumulate = true;
        }
        Ok(Some((first, second)))
    }

    /// A Gemm whose alpha or beta is not 1: the product, then a program.
    fn scaled_gemm(&mut self, name: &str, node: &Node) -> Done {
        let Op::Gemm { alpha, beta, .. } = node.op else {
            return unsupported("not a product");
        };
        let [Some(a), Some(b)] = [node.input(0), node.input(1)] else {
            return unsupported("an operand is missing");
        };
        let a = self.in_words(name, a)?;
        let (a, b, code) = self.factors(node, a, b)?;
        let out = self.result(node.outputs[0])?;
        let raw = self.fresh(&out.view.shape.clone(), out.scalar);
        self.multiply(name, &Operands::plain(a, b, code, raw.clone()))?;
        let mut inputs = vec![raw];
        let mut program = Program::new(1);
        let factor = program.float(alpha);
        let mut sum = program.step(ElementOp::MulF, &[Reg::Input(0), factor]);
        if let Some(c) = node.input(2) {
            inputs.push(self.located(c)?);
            program.inputs = 2;
            let factor = program.float(beta);
            sum = program.step(ElementOp::MulAddF, &[Reg::Input(1), factor, sum]);
        }
        program.results = vec![sum];
        self.program(name, &program, &inputs, &[], &out)?;
        self.set(node.outputs[0], out);
        Ok(())
    }
}
