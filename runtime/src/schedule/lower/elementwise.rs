//! Elementwise groups to programs.

use std::collections::HashMap;

use snlp_passes::ir::{Binary, DType, Node, NodeId, Op, ValueId};

use super::{Done, Failure, Located, Lowering, unsupported};
use crate::kernels::{ElementOp, Elementwise, Program, Reg, Scalar, View, scalar_of};

/// A program and the values it reads.
pub(super) struct Built {
    pub program: Program,
    pub inputs: Vec<ValueId>,
}

/// The program of a group whose last node is `root`.
pub(super) fn build(lowering: &mut Lowering<'_>, root: NodeId, members: &[NodeId]) -> Done<Built> {
    let Some(out) = lowering.graph.node(root).map(|n| n.outputs[0]) else {
        return Err(Failure::Operand);
    };
    let mut builder =
        Builder { lowering, members, program: Program::new(0), inputs: vec![], done: HashMap::new() };
    let result = builder.value(out)?;
    let Builder { mut program, inputs, .. } = builder;
    program.inputs = inputs.len();
    program.results = vec![result];
    program.validate()?;
    Ok(Built { program, inputs })
}

struct Builder<'a, 'g> {
    lowering: &'a mut Lowering<'g>,
    members: &'a [NodeId],
    program: Program,
    inputs: Vec<ValueId>,
    done: HashMap<ValueId, Reg>,
}

impl Builder<'_, '_> {
    fn value(&mut self, v: ValueId) -> Done<Reg> {
        if let Some(reg) = self.done.get(&v) {
            return Ok(*reg);
        }
        let graph = self.lowering.graph;
        let reg = match graph.producer(v).filter(|p| self.members.contains(p)).and_then(|p| graph.node(p)) {
            Some(node) => self.node(node)?,
            None => match self.scalar(v)? {
                Some(bits) => self.program.constant(bits),
                None => {
                    self.inputs.push(v);
                    let at = u8::try_from(self.inputs.len() - 1)
                        .map_err(|_| Failure::Unsupported("more than 256 operands".into()))?;
                    Reg::Input(at)
                }
            },
        };
        self.done.insert(v, reg);
        Ok(reg)
    }

    /// The bits of a one-element constant.
    fn scalar(&mut self, v: ValueId) -> Done<Option<u32>> {
        let one = self
            .lowering
            .graph
            .ty(v)
            .and_then(|t| t.known_shape())
            .is_some_and(|s| s.iter().all(|d| *d == 1));
        let Some(tensor) = one.then(|| self.lowering.statics.get(v)).flatten() else { return Ok(None) };
        if tensor.dtype().is_float() {
            return Ok(tensor.to_f32().first().map(|x| x.to_bits()));
        }
        match tensor.to_i64().and_then(|t| t.first().copied()) {
            Some(n) => match i32::try_from(n) {
                Ok(n) => Ok(Some(n as u32)),
                Err(_) => unsupported(format!("the constant {n} does not fit the device's 32-bit integers")),
            },
            None => Ok(None),
        }
    }

    fn operand(&mut self, node: &Node, at: usize) -> Done<(Reg, DType)> {
        match node.input(at) {
            Some(v) => Ok((self.value(v)?, self.lowering.dtype(v))),
            None => unsupported(format!("operand {at} is missing")),
        }
    }

    fn node(&mut self, node: &Node) -> Done<Reg> {
        match &node.op {
            Op::Unary(u) => {
                let (x, dtype) = self.operand(node, 0)?;
                Ok(self.program.unary(*u, x, scalar_of(dtype))?)
            }
            Op::Binary(b) => self.binary(node, *b),
            Op::Cast { to } => {
                let (x, dtype) = self.operand(node, 0)?;
                Ok(self.program.cast(x, scalar_of(dtype), *to))
            }
            Op::Where => {
                let (c, _) = self.operand(node, 0)?;
                let (x, _) = self.operand(node, 1)?;
                let (y, _) = self.operand(node, 2)?;
                Ok(self.program.step(ElementOp::Select, &[c, x, y]))
            }
            Op::Clip => self.clip(node),
            Op::Quantize { to, blocks: None } => self.quantize(node, *to),
            Op::Dequantize { blocks: None } => self.dequantize(node),
            other => unsupported(format!("{} is not elementwise", other.name())),
        }
    }

    fn binary(&mut self, node: &Node, b: Binary) -> Done<Reg> {
        let (x, dx) = self.operand(node, 0)?;
        let (mut y, dy) = self.operand(node, 1)?;
        let scalar = scalar_of(dx);
        if b == Binary::Pow && scalar_of(dy) != scalar {
            y = self.program.cast(y, scalar_of(dy), dx);
        }
        Ok(self.program.binary(b, x, y, scalar)?)
    }

    fn quantize(&mut self, node: &Node, to: DType) -> Done<Reg> {
        let Some((low, high)) = to.range() else { return unsupported(format!("integers of {to}")) };
        let (x, _) = self.operand(node, 0)?;
        let (scale, _) = self.operand(node, 1)?;
        let steps = self.program.step(ElementOp::DivF, &[x, scale]);
        let mut y = self.program.step(ElementOp::Round, &[steps]);
        if node.input(2).is_some() {
            let (zero, _) = self.operand(node, 2)?;
            let zero = self.program.step(ElementOp::IToF, &[zero]);
            y = self.program.step(ElementOp::AddF, &[y, zero]);
        }
        let (low, high) = (self.program.float(low as f32), self.program.float(high as f32));
        let y = self.program.step(ElementOp::ClipF, &[y, low, high]);
        Ok(self.program.step(ElementOp::FToI, &[y]))
    }

    fn dequantize(&mut self, node: &Node) -> Done<Reg> {
        let (mut x, _) = self.operand(node, 0)?;
        let (scale, dtype) = self.operand(node, 1)?;
        if node.input(2).is_some() {
            let (zero, _) = self.operand(node, 2)?;
            x = self.program.step(ElementOp::SubI, &[x, zero]);
        }
        let x = self.program.step(ElementOp::IToF, &[x]);
        let y = self.program.step(ElementOp::MulF, &[x, scale]);
        Ok(match dtype {
            DType::F16 => self.program.step(ElementOp::RoundF16, &[y]),
            DType::BF16 => self.program.step(ElementOp::RoundBf16, &[y]),
            _ => y,
        })
    }

    fn clip(&mut self, node: &Node) -> Done<Reg> {
        let (x, dtype) = self.operand(node, 0)?;
        let float = scalar_of(dtype) == Scalar::F32;
        let (both, low, high) = if float {
            (ElementOp::ClipF, ElementOp::MaxF, ElementOp::MinF)
        } else {
            (ElementOp::ClipI, ElementOp::MaxI, ElementOp::MinI)
        };
        let min = node.input(1).map(|v| self.value(v)).transpose()?;
        let max = node.input(2).map(|v| self.value(v)).transpose()?;
        Ok(match (min, max) {
            (Some(a), Some(b)) => self.program.step(both, &[x, a, b]),
            (Some(a), None) => self.program.step(low, &[x, a]),
            (None, Some(b)) => self.program.step(high, &[x, b]),
            (None, None) => x,
        })
    }
}

impl Lowering<'_> {
    /// A cast between float types, which changes nothing on the device: activations are f32.
    pub(super) fn is_plain_cast(&self, node: &Node) -> bool {
        match (&node.op, node.input(0)) {
            (Op::Cast { to }, Some(v)) => to.is_float() && self.dtype(v).is_float(),
            _ => false,
        }
    }

    pub(super) fn elementwise(&mut self, id: NodeId) -> Done {
        let Some(node) = self.graph.node(id) else { return Ok(()) };
        if self.is_plain_cast(node)
            && let Some(v) = node.input(0)
        {
            let at = self.located(v)?;
            self.set(node.outputs[0], at);
            return Ok(());
        }
        let members = self.chains.programs.get(&id).cloned().unwrap_or_else(|| vec![id]);
        let built = build(self, id, &members)?;
        let mut inputs = vec![];
        for v in &built.inputs {
            inputs.push(self.located(*v)?);
        }
        let out = self.result(node.outputs[0])?;
        let name = self.name(node);
        self.program(&name, &built.program, &inputs, &[], &out)?;
        self.set(node.outputs[0], out);
        Ok(())
    }

    /// Adds the step that runs a program with one result; nothing when there is nothing to compute.
    pub(super) fn program(
        &mut self,
        node: &str,
        program: &Program,
        inputs: &[Located],
        indices: &[&View],
        out: &Located,
    ) -> Done {
        if out.view.is_empty() {
            return Ok(());
        }
        let inputs = inputs.iter().map(|i| self.bind(i)).collect::<Done<Vec<_>>>()?;
        let out = self.bind(out)?;
        let operands: Vec<_> = inputs.iter().map(|b| &b.operand).collect();
        let launch = Elementwise { program, inputs: &operands, indices, outputs: &[&out.operand] }
            .launch(self.limits)?;
        let mut bound: Vec<_> = inputs.iter().collect();
        bound.push(&out);
        self.emit(node, launch, &bound)
    }
}
