//! Graphs on the CPU: bound to sizes, lowered to plain operators, handed to tract as ONNX. Where values decide
//! sizes, in parts.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use snlp::error::{Error, Kind};
use snlp::feeds::{convert, room_to_convert};
use snlp::onnx::{Model, ModelInfo, WriteOptions};
use snlp::passes::eval::allocation;
use snlp::passes::ir::{Bindings, Graph, Tensor};
use snlp::passes::rewrite::{Dialect, Stages, bind, bindings_from, lower};
use snlp::runtime::cpu::CpuModel;

use super::backend::runtime_error;

/// Models kept for sizes that were used last.
const KEPT: usize = 4;

/// A graph on the CPU; tract models for each set of sizes.
pub struct CpuRunner {
    graph: Graph,
    /// Most recently used last.
    stages: Mutex<Vec<(Bindings, Stages<Part>)>>,
    /// Names of inputs that stay here, and of the outputs that take their place.
    names: Vec<(String, String)>,
    /// What they hold; nothing before the first run.
    states: Mutex<Vec<(String, Tensor)>>,
}

/// A model with what its inputs and outputs are called, in order.
struct Part {
    model: CpuModel,
    inputs: Vec<String>,
    outputs: Vec<String>,
}

impl Part {
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, Error> {
        let named: Vec<(String, Tensor)> = self.inputs.iter().cloned().zip(inputs.iter().cloned()).collect();
        let found = self.model.run(&named).map_err(runtime_error)?;
        let output = |name: &String| {
            let tensor = found.iter().find(|(n, _)| n == name).map(|(_, t)| t.clone());
            tensor.ok_or_else(|| missing(name))
        };
        self.outputs.iter().map(output).collect()
    }
}

fn missing(output: &str) -> Error {
    Error::new(Kind::Internal, format!("the CPU backend did not return '{output}'"))
}

impl CpuRunner {
    /// A runner that keeps some of the outputs for the inputs of the next run; nothing is prepared before the
    /// first.
    pub fn new(graph: Graph, names: Vec<(String, String)>) -> Self {
        CpuRunner { graph, stages: Mutex::default(), names, states: Mutex::default() }
    }

    /// Runs the graph; outputs come in the graph's order.
    pub fn run(&self, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, Error> {
        let mut states = self.states()?;
        let all: Vec<(String, Tensor)> = inputs.iter().chain(states.iter()).cloned().collect();
        let outputs = self.with_stages(&all, forward)?;
        let mut named = self
            .graph
            .outputs
            .iter()
            .zip(&outputs)
            .map(|(o, t)| declared(&self.graph, o, t))
            .collect::<Result<Vec<_>, _>>()?;
        for (state, (_, after)) in states.iter_mut().zip(&self.names) {
            if let Some(at) = named.iter().position(|(name, _)| name == after) {
                state.1 = named.remove(at).1;
            }
        }
        Ok(named)
    }

    /// What the states hold.
    fn states(&self) -> Result<MutexGuard<'_, Vec<(String, Tensor)>>, Error> {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        if states.is_empty() {
            *states = self.names.iter().map(|(before, _)| self.zeros(before)).collect::<Result<_, _>>()?;
        }
        Ok(states)
    }

    /// What a state holds at first.
    fn zeros(&self, name: &str) -> Result<(String, Tensor), Error> {
        let made = self.graph.input(name).and_then(|v| self.graph.ty(v)).and_then(|ty| {
            let shape = ty.known_shape()?;
            let zeros = vec![0u8; ty.dtype.bytes(allocation(ty.dtype, &shape).ok()?)];
            Tensor::from_bytes(ty.dtype, shape, zeros.into()).ok()
        });
        made.map(|t| (name.to_string(), t))
            .ok_or_else(|| Error::new(Kind::Internal, format!("state '{name}' has no size")))
    }

    /// The time of each of `count` forwards.
    pub fn time(&self, inputs: &[(String, Tensor)], count: usize) -> Result<Vec<Duration>, Error> {
        let all: Vec<(String, Tensor)> = inputs.iter().chain(self.states()?.iter()).cloned().collect();
        self.with_stages(&all, |stages, inputs| {
            // What is prepared on the way is prepared before the first.
            stages.last(inputs.clone(), &prepare, &mut |part: &Part, inputs| part.run(inputs))?;
            let mut once = || {
                let start = Instant::now();
                forward(stages, inputs.clone())?;
                Ok(start.elapsed())
            };
            (0..count).map(|_| once()).collect()
        })
    }

    /// Works on what runs for the sizes of these inputs, given in the graph's order.
    fn with_stages<T>(
        &self,
        inputs: &[(String, Tensor)],
        work: impl FnOnce(&mut Stages<Part>, Vec<Tensor>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let shapes: Vec<(&str, &[usize])> = inputs.iter().map(|(n, t)| (n.as_str(), t.shape())).collect();
        let bindings = bindings_from(&self.graph, &shapes)
            .map_err(|e| Error::input("the shapes of the inputs do not fit the model").because(e))?;
        let mut ordered = vec![];
        for v in self.graph.inputs() {
            let name = self.graph.value(*v).name.as_deref().unwrap_or_default();
            match inputs.iter().find(|(n, _)| n == name) {
                Some((_, tensor)) => ordered.push(tensor.clone()),
                None => {
                    return Err(Error::input(format!("input '{name}' is missing"))
                        .help("give every input that 'snlp inspect' lists"));
                }
            }
        }
        let mut kept = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = match kept.iter().position(|(b, _)| *b == bindings) {
            Some(at) => kept.remove(at),
            None => {
                let bound = bind(&self.graph, &bindings)
                    .map_err(|e| runtime_error(snlp::runtime::RuntimeError::Bind(e.to_string())))?;
                let stages = Stages::new(bound, &prepare)?;
                if kept.len() >= KEPT {
                    kept.remove(0);
                }
                (bindings, stages)
            }
        };
        kept.push(entry);
        match kept.last_mut() {
            Some((_, stages)) => work(stages, ordered),
            None => Err(Error::new(Kind::Internal, "no model was prepared")),
        }
    }
}

fn forward(stages: &mut Stages<Part>, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, Error> {
    let (last, inputs) = stages.last(inputs, &prepare, &mut |part: &Part, inputs| part.run(inputs))?;
    last.run(&inputs)
}

/// A graph without symbols as a model of tract's.
fn prepare(mut graph: Graph) -> Result<Part, Error> {
    let failed = |e: Box<dyn std::error::Error + Send + Sync>| {
        Error::input("the model cannot be prepared for the CPU").because(e).help("try --backend gpu")
    };
    lower(&mut graph, &Dialect::basic()).map_err(|e| failed(e.into()))?;
    let inputs = graph.inputs().iter().map(|v| graph.value(*v).name.clone().unwrap_or_default()).collect();
    let outputs = graph.outputs.iter().map(|o| o.name.clone()).collect();
    let info = ModelInfo::standard(17);
    let options = WriteOptions { inline: true, ..WriteOptions::default() };
    let bytes = Model { graph, info }.encode(&options).map_err(|e| failed(e.into()))?;
    Ok(Part { model: CpuModel::from_onnx(&bytes).map_err(runtime_error)?, inputs, outputs })
}

/// An output under the name and dtype that the graph gives it.
fn declared(
    graph: &Graph,
    output: &snlp::passes::ir::Output,
    tensor: &Tensor,
) -> Result<(String, Tensor), Error> {
    let tensor = match graph.ty(output.value) {
        Some(ty) => {
            room_to_convert(tensor, ty.dtype)?;
            convert(tensor, ty.dtype)
                .map_err(|e| Error::new(Kind::Internal, format!("output '{}': {e}", output.name)))?
        }
        None => tensor.clone(),
    };
    Ok((output.name.clone(), tensor))
}
