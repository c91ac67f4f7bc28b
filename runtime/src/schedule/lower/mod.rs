//! Nodes to steps.
//!
//! Nodes are visited in an order of evaluation. Each value gets a home: on the host, or a view of a slot
//! on the device. A node that cannot be lowered is recorded and its results are marked as failed, so that
//! one pass over the graph reports all of them.

mod attention;
mod chain;
mod coded;
mod elementwise;
mod group;
mod heads;
mod integer;
mod linear;
mod reshape;
mod rows;
mod select;
mod sinkhorn;

use std::collections::{HashMap, HashSet};

use snlp_passes::ir::{DType, Def, Graph, Node, NodeId, Op, Tensor, ValueId};

use chain::Chains;

use super::constants::{Constant, PIECE_ALIGN, packed_scalar_of, scalar_bytes};
use super::place::{Placement, Statics, place};
use super::plan::{
    Binding, HostStep, HostValue, Input, Output, OutputSource, Place, Plan, Slot, Step, Upload,
};
use super::{Options, ScheduleError, Unsupported, WeightDtype, views};
use crate::kernels::{KernelError, Launch, Limits, Operand, Program, Scalar, View, scalar_of};

/// A value on the device: a view of a slot.
#[derive(Clone, Debug)]
pub(super) struct Located {
    pub slot: usize,
    pub view: View,
    pub scalar: Scalar,
}

/// A value's home.
#[derive(Clone, Debug)]
enum Home {
    Host(HostValue),
    Device(Located),
    /// A node that makes it cannot run.
    Failed,
}

/// An operand as a launcher and the executor need it.
pub(super) struct Bound {
    pub operand: Operand,
    pub binding: Binding,
}

/// Why a node was not lowered.
pub(super) enum Failure {
    /// It cannot run.
    Unsupported(String),
    /// An operand has failed; there is nothing new to report.
    Operand,
    /// A shape is not known.
    Shape(ValueId),
}

impl From<KernelError> for Failure {
    fn from(error: KernelError) -> Self {
        Failure::Unsupported(error.to_string())
    }
}

fn unsupported<T>(reason: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::Unsupported(reason.into()))
}

type Done<T = ()> = Result<T, Failure>;

pub(super) struct Lowering<'g> {
    graph: &'g Graph,
    limits: &'g Limits,
    options: &'g Options,
    placement: Placement,
    statics: Statics<'g>,
    /// Nodes that read a value, by value; only live ones.
    users: Vec<Vec<NodeId>>,
    results: HashSet<ValueId>,
    homes: Vec<Option<Home>>,
    /// Dequantised constants and views of them, as they lie.
    coded: HashMap<ValueId, coded::Coded>,
    constants: HashMap<(ValueId, Scalar), Located>,
    uploads: HashMap<ValueId, Located>,
    /// Nodes computed by the step of a later node.
    absorbed: HashSet<NodeId>,
    chains: Chains,
    plan: Plan,
    unsupported: Vec<Unsupported>,
}

/// Lowers a graph; levels, buffers and parameters are left to the caller.
pub(super) fn lower(graph: &Graph, limits: &Limits, options: &Options) -> Result<Plan, ScheduleError> {
    let order = graph.topological().map_err(|e| ScheduleError::Graph(e.to_string()))?;
    let placement = place(graph, &order, options.host_elements);
    let mut users = graph.users();
    for list in &mut users {
        list.retain(|n| placement.live.get(n.index()).copied().unwrap_or(false));
    }
    let mut l = Lowering {
        graph,
        limits,
        options,
        placement,
        statics: Statics::new(graph),
        users,
        results: graph.outputs.iter().map(|o| o.value).collect(),
        homes: vec![None; graph.value_count()],
        coded: HashMap::new(),
        constants: HashMap::new(),
        uploads: HashMap::new(),
        absorbed: HashSet::new(),
        chains: Chains::default(),
        plan: Plan::default(),
        unsupported: vec![],
    };
    l.inputs()?;
    // By level, so that what a group reads comes before it wherever the graph allows that.
    let levels = group::levels(graph, &order);
    let mut live: Vec<NodeId> = order.into_iter().filter(|n| l.placement.live[n.index()]).collect();
    live.sort_by_key(|n| levels[n.index()]);
    l.find_chains(&live, &levels);
    for id in live {
        l.visit(id)?;
    }
    l.outputs()?;
    l.plan.drop_unread_host_steps();
    if l.unsupported.is_empty() { Ok(l.plan) } else { Err(ScheduleError::Unsupported(l.unsupported)) }
}

impl<'g> Lowering<'g> {
    fn inputs(&mut self) -> Result<(), ScheduleError> {
        for v in self.graph.inputs() {
            let n = self.plan.inputs.len();
            let name = self.graph.value(*v).name.clone().unwrap_or_default();
            let Some(ty) = self.graph.ty(*v) else { return Err(self.unknown_shape(*v)) };
            let Some(shape) = ty.known_shape() else { return Err(self.unknown_shape(*v)) };
            if self.options.states.iter().any(|(before, _)| *before == name) {
                let dims = self.shape(*v).map_err(|_| self.unknown_shape(*v))?;
                let scalar = scalar_of(ty.dtype);
                let view = View::dense(&dims);
                let slot = self.slot(Place::State(self.plan.states.len()), scalar_bytes(scalar, view.len()));
                self.plan.states.push(Input { name, dtype: ty.dtype, shape });
                self.homes[v.index()] = Some(Home::Device(Located { slot, view, scalar }));
                continue;
            }
            let home = if ty.dtype.is_float() {
                let dims = self.shape(*v).map_err(|_| self.unknown_shape(*v))?;
                let bytes = shape.iter().product::<usize>() as u64 * 4;
                let slot = self.slot(Place::Input(n), bytes);
                Home::Device(Located { slot, view: View::dense(&dims), scalar: Scalar::F32 })
            } else {
                Home::Host(HostValue::Input(n))
            };
            self.plan.inputs.push(Input { name, dtype: ty.dtype, shape });
            self.homes[v.index()] = Some(home);
        }
        Ok(())
    }

    fn visit(&mut self, id: NodeId) -> Result<(), ScheduleError> {
        let Some(node) = self.graph.node(id) else { return Ok(()) };
        if let Some(group) = self.chains.heads.remove(&id) {
            if self.step(node, &group).is_ok() {
                return Ok(());
            }
            if self.make_ready(node, &group).is_err() {
                for member in group.members {
                    self.absorbed.remove(&member);
                    self.visit(member)?;
                }
            }
        }
        let done = if self.placement.host[id.index()] {
            self.on_host(node)
        } else if let Some(group) = self.chains.groups.get(&id).cloned() {
            self.group(&group)
        } else if self.absorbed.contains(&id) {
            Ok(())
        } else {
            self.on_device(id, node)
        };
        let failure = match done {
            Ok(()) => return Ok(()),
            Err(failure) => failure,
        };
        for v in &node.outputs {
            self.homes[v.index()] = Some(Home::Failed);
        }
        match failure {
            Failure::Operand => {}
            Failure::Shape(v) => return Err(self.unknown_shape(v)),
            Failure::Unsupported(reason) => {
                self.unsupported.push(Unsupported { node: self.name(node), op: node.op.name(), reason })
            }
        }
        Ok(())
    }

    /// The node's name, or that of its first result.
    fn name(&self, node: &Node) -> String {
        if !node.name.is_empty() {
            return node.name.clone();
        }
        node.outputs.first().map(|v| self.value_name(*v)).unwrap_or_default()
    }

    fn value_name(&self, v: ValueId) -> String {
        self.graph.value(v).name.clone().unwrap_or_else(|| format!("{v:?}"))
    }

    fn unknown_shape(&self, v: ValueId) -> ScheduleError {
        let shape = self.graph.ty(v).map_or_else(|| "unknown".to_string(), |t| t.to_string());
        ScheduleError::UnknownShape { value: self.value_name(v), shape }
    }

    fn on_host(&mut self, node: &Node) -> Done {
        if let Op::Opaque(_) = node.op {
            return unsupported("no kernel or evaluation for this operator");
        }
        let fixed: Option<Vec<Tensor>> = node.outputs.iter().map(|v| self.statics.get(*v)).collect();
        if let Some(tensors) = fixed {
            for (v, tensor) in node.outputs.iter().zip(tensors) {
                self.homes[v.index()] = Some(Home::Host(HostValue::Constant(tensor)));
            }
            return Ok(());
        }
        let mut inputs = vec![];
        for v in &node.inputs {
            inputs.push(match v {
                Some(v) => Some(self.host_value(*v).ok_or(Failure::Operand)?),
                None => None,
            });
        }
        let first_output = self.plan.host_values;
        for (i, v) in node.outputs.iter().enumerate() {
            self.homes[v.index()] = Some(Home::Host(HostValue::Computed(first_output + i)));
        }
        self.plan.host_values += node.outputs.len();
        self.plan.host.push(HostStep { node: self.name(node), op: node.op.clone(), inputs, first_output });
        Ok(())
    }

    /// The value, when it is on the host.
    fn host_value(&self, v: ValueId) -> Option<HostValue> {
        if let Some(tensor) = self.graph.tensor(v) {
            return Some(HostValue::Constant(tensor.clone()));
        }
        match &self.homes[v.index()] {
            Some(Home::Host(value)) => Some(value.clone()),
            _ => None,
        }
    }

    fn on_device(&mut self, id: NodeId, node: &Node) -> Done {
        if let Some(norm) = self.chains.norms.get(&id).cloned() {
            return self.norm(node, &norm);
        }
        if self.chains.products.contains_key(&id) {
            return self.product(id, node);
        }
        if let Some(balance) = self.chains.balances.get(&id).cloned() {
            return self.balance(node, &balance);
        }
        match &node.op {
            Op::Dequantize { blocks } if blocks.is_some() || self.is_coded(node) => {
                self.dequantize(node, *blocks)
            }
            Op::MatMulInteger => self.integer_product(node),
            Op::DynamicQuantize { axes } => self.dynamic_quantize(node, axes),
            op if chain::is_elementwise(op) => self.elementwise(id),
            Op::MatMul | Op::Gemm { .. } => self.product(id, node),
            Op::Identity
            | Op::Reshape { .. }
            | Op::Transpose { .. }
            | Op::Squeeze { .. }
            | Op::Unsqueeze { .. }
            | Op::Expand
            | Op::Slice { .. } => self.view(node),
            Op::Concat { .. } | Op::Trilu { .. } | Op::ConstantOfShape { .. } => self.arrange(node),
            Op::Gather { .. } | Op::GatherElements { .. } | Op::ScatterElements { .. } => self.select(node),
            Op::Attention(_) | Op::Rotary(_) | Op::Correction(_) | Op::Conv { .. } => self.block(node),
            _ => self.rows(node),
        }
    }

    /// The shape of a value, all sizes known.
    fn shape(&self, v: ValueId) -> Done<Vec<u32>> {
        let ty = self.graph.ty(v).ok_or(Failure::Shape(v))?;
        ty.shape
            .iter()
            .map(|d| d.known().and_then(|n| u32::try_from(n).ok()).ok_or(Failure::Shape(v)))
            .collect()
    }

    fn dtype(&self, v: ValueId) -> DType {
        self.graph.ty(v).map_or(DType::F32, |t| t.dtype)
    }

    fn slot(&mut self, place: Place, bytes: u64) -> usize {
        self.plan.slots.push(Slot { place, bytes: bytes.max(4) });
        self.plan.slots.len() - 1
    }

    /// A dense slot for a value of this shape.
    fn fresh(&mut self, shape: &[u32], scalar: Scalar) -> Located {
        let view = View::dense(shape);
        let slot = self.slot(Place::Activation(usize::MAX), scalar_bytes(scalar, view.len()));
        Located { slot, view, scalar }
    }

    fn set(&mut self, v: ValueId, at: Located) {
        self.homes[v.index()] = Some(Home::Device(at));
    }

    /// Where a value lies on the device; constants and host values are brought there. Float constants
    /// come as f32.
    fn located(&mut self, v: ValueId) -> Done<Located> {
        let scalar = scalar_of(self.dtype(v));
        self.located_as(v, scalar)
    }

    /// As [`Lowering::located`], for operands that a kernel reads packed: as f16 where the model holds f16 or
    /// the options ask for it, and as quantised integers where it holds those.
    fn matrix(&mut self, v: ValueId) -> Done<Located> {
        let half = match self.dtype(v) {
            DType::F16 => true,
            d => d.is_float() && self.options.weights == WeightDtype::F16,
        };
        let scalar = if half { Scalar::F16 } else { packed_scalar_of(self.dtype(v)) };
        self.located_as(v, scalar)
    }

    fn located_as(&mut self, v: ValueId, scalar: Scalar) -> Done<Located> {
        if let Some(tensor) = self.graph.tensor(v) {
            return self.constant(v, tensor, scalar);
        }
        match &self.homes[v.index()] {
            Some(Home::Device(at)) => Ok(at.clone()),
            Some(Home::Host(value)) => {
                let value = value.clone();
                self.upload(v, value)
            }
            Some(Home::Failed) => Err(Failure::Operand),
            None => self.decoded(v)?.ok_or(Failure::Operand),
        }
    }

    fn constant(&mut self, v: ValueId, tensor: &Tensor, scalar: Scalar) -> Done<Located> {
        if let Some(at) = self.constants.get(&(v, scalar)) {
            return Ok(at.clone());
        }
        let Some(constant) = Constant::new(&self.value_name(v), tensor, scalar) else {
            return unsupported(format!("constant {tensor:?} has more elements than a device can index"));
        };
        let n = self.plan.constants.len();
        let slot = self.slot(Place::Constant(n), constant.bytes());
        let at = Located { slot, view: constant.view.clone(), scalar };
        self.plan.constants.push(constant);
        self.constants.insert((v, scalar), at.clone());
        Ok(at)
    }

    fn upload(&mut self, v: ValueId, value: HostValue) -> Done<Located> {
        if let Some(at) = self.uploads.get(&v) {
            return Ok(at.clone());
        }
        let shape = self.shape(v)?;
        let name = self.value_name(v);
        let at = self.new_upload(name, value, &shape, scalar_of(self.dtype(v)));
        self.uploads.insert(v, at.clone());
        Ok(at)
    }

    /// A tensor that this schedule made, on the device.
    fn literal(&mut self, name: &str, tensor: &Tensor) -> Done<Located> {
        let shape = tensor.shape().iter().map(|d| u32::try_from(*d).ok()).collect::<Option<Vec<_>>>();
        match shape {
            Some(shape) => {
                let scalar = scalar_of(tensor.dtype());
                Ok(self.new_upload(name.into(), HostValue::Constant(tensor.clone()), &shape, scalar))
            }
            None => unsupported(format!("{tensor:?} is larger than a device can index")),
        }
    }

    fn new_upload(&mut self, name: String, value: HostValue, shape: &[u32], scalar: Scalar) -> Located {
        let view = View::dense(shape);
        let at = self.plan.upload_bytes.next_multiple_of(PIECE_ALIGN);
        let bytes = scalar_bytes(scalar, view.len());
        self.plan.upload_bytes = at + bytes.max(4);
        let slot = self.slot(Place::Upload(at), bytes);
        self.plan.uploads.push(Upload { value, name, scalar, slot });
        Located { slot, view, scalar }
    }

    /// The binding and operand of a view: the whole slot, or the range that the view touches where the
    /// slot is larger than a binding may be.
    fn bind(&self, at: &Located) -> Done<Bound> {
        let whole = self.plan.slots.get(at.slot).map_or(0, |s| s.bytes);
        let limit = self.limits.max_storage_binding;
        let operand = |view: View| Operand { view, scalar: at.scalar };
        if whole <= limit {
            let binding = Binding { slot: at.slot, offset: 0, bytes: whole };
            return Ok(Bound { operand: operand(at.view.clone()), binding });
        }
        let (start, end) = views::extent(&at.view);
        let align = u64::from(self.limits.min_offset_alignment).max(PIECE_ALIGN);
        let offset = start * at.scalar.bits() / 8 / align * align;
        let bytes = scalar_bytes(at.scalar, end).next_multiple_of(4).min(whole) - offset;
        if bytes > limit {
            return Err(Failure::Unsupported(format!(
                "an operand spans {bytes} bytes, one binding of the device covers {limit}"
            )));
        }
        let before = (offset * 8 / at.scalar.bits()) as u32;
        let view = View { offset: at.view.offset.wrapping_sub(before), ..at.view.clone() };
        Ok(Bound { operand: operand(view), binding: Binding { slot: at.slot, offset, bytes } })
    }

    /// Adds a step that changes a result in place.
    fn emit_in_place(&mut self, node: &str, launch: Launch, bound: &[&Bound]) -> Done {
        self.emit(node, launch, bound)?;
        self.plan.steps.last_mut().into_iter().for_each(|step| step.in_place = true);
        Ok(())
    }

    /// Adds a step.
    fn emit(&mut self, node: &str, launch: Launch, bound: &[&Bound]) -> Done {
        let most = self.limits.max_storage_buffers as usize;
        if bound.len() > most {
            return unsupported(format!("{} buffers in one dispatch; the device allows {most}", bound.len()));
        }
        let bindings = bound.iter().map(|b| b.binding).collect();
        self.plan.steps.push(Step { node: node.into(), launch, bindings, in_place: false, params_at: 0 });
        Ok(())
    }

    /// The value copied: densely laid out, in words.
    fn copied(&mut self, node: &str, at: &Located) -> Done<Located> {
        let out = self.fresh(&at.view.shape, at.scalar.unpacked());
        self.copy_into(node, at, &out)?;
        Ok(out)
    }

    fn copy_into(&mut self, node: &str, from: &Located, to: &Located) -> Done {
        self.program(node, &Program::copy(), std::slice::from_ref(from), &[], to)
    }

    /// A value in words: a copy where it is packed.
    fn as_words(&mut self, node: &str, at: Located) -> Done<Located> {
        if at.scalar.is_packed() { self.copied(node, &at) } else { Ok(at) }
    }

    /// Where a value lies, in words.
    fn in_words(&mut self, node: &str, v: ValueId) -> Done<Located> {
        let at = self.located(v)?;
        self.as_words(node, at)
    }

    fn outputs(&mut self) -> Result<(), ScheduleError> {
        // States are written last: whatever reads what they held before comes first.
        let of_state =
            |o: &&snlp_passes::ir::Output| self.options.states.iter().any(|(_, after)| *after == o.name);
        let (states, results): (Vec<_>, Vec<_>) = self.graph.outputs.iter().partition(of_state);
        for output in results {
            let dtype = self.dtype(output.value);
            let shape = self.graph.ty(output.value).and_then(|t| t.known_shape()).unwrap_or_default();
            let source = match self.output(output.value, &output.name) {
                Ok(source) => source,
                Err(Failure::Shape(_)) if !self.unsupported.is_empty() => continue,
                Err(Failure::Shape(v)) => return Err(self.unknown_shape(v)),
                Err(Failure::Operand) if self.unsupported.is_empty() => {
                    let reason = format!("output '{}' depends on a value that no step computes", output.name);
                    return Err(ScheduleError::Graph(reason));
                }
                Err(Failure::Operand) => continue,
                Err(Failure::Unsupported(reason)) => {
                    let (node, op) = (output.name.clone(), "output".into());
                    self.unsupported.push(Unsupported { node, op, reason });
                    continue;
                }
            };
            self.plan.outputs.push(Output { name: output.name.clone(), dtype, shape, source });
        }
        for output in states {
            match self.keep(output) {
                Ok(()) | Err(Failure::Operand) => {}
                Err(Failure::Shape(v)) => return Err(self.unknown_shape(v)),
                Err(Failure::Unsupported(reason)) => {
                    let (node, op) = (output.name.clone(), "output".into());
                    self.unsupported.push(Unsupported { node, op, reason });
                }
            }
        }
        Ok(())
    }

    /// Sees to it that the new content of a state lies in its place: by a copy where it was not written there.
    fn keep(&mut self, output: &snlp_passes::ir::Output) -> Done {
        let before = self.options.states.iter().find(|(_, after)| *after == output.name);
        let place = before.and_then(|(before, _)| self.graph.input(before));
        let Some(Some(Home::Device(place))) = place.map(|v| self.homes[v.index()].clone()) else {
            return unsupported(format!("'{}' is the next content of no state", output.name));
        };
        let new = self.located(output.value)?;
        if new.slot == place.slot {
            return Ok(());
        }
        self.copy_into(&output.name, &new, &place)
    }

    fn output(&mut self, v: ValueId, name: &str) -> Done<OutputSource> {
        if let Some(value) = self.host_value(v) {
            return Ok(OutputSource::Host(value));
        }
        if let Def::Input = self.graph.value(v).def
            && let Some(n) =
                self.plan.inputs.iter().position(|i| Some(&i.name) == self.graph.value(v).name.as_ref())
        {
            return Ok(OutputSource::Host(HostValue::Input(n)));
        }
        let mut at = self.located(v)?;
        let slot = self.plan.slots.get(at.slot).map(|s| s.place.clone());
        let copyable = matches!(slot, Some(Place::Activation(_)));
        if !copyable || !at.view.is_dense() || at.scalar.is_packed() {
            at = self.copied(name, &at)?;
        }
        let binding = Binding {
            slot: at.slot,
            offset: u64::from(at.view.offset) * 4,
            bytes: scalar_bytes(at.scalar, at.view.len()),
        };
        Ok(OutputSource::Device { binding, scalar: at.scalar })
    }
}
