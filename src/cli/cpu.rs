//! Graphs on the CPU: bound to sizes, lowered to plain operators, handed to tract as ONNX.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use snlp::error::{Error, Kind};
use snlp::onnx::{Model, ModelInfo, WriteOptions};
use snlp::passes::ir::{Bindings, Graph, Tensor};
use snlp::passes::rewrite::{Dialect, bind, bindings_from, lower};
use snlp::runtime::cpu::CpuModel;

use super::backend::runtime_error;

/// Models kept for sizes that were used last.
const KEPT: usize = 4;

/// A graph on the CPU; one tract model per set of sizes.
pub struct CpuRunner {
    graph: Graph,
    /// Most recently used last.
    models: Mutex<Vec<(Bindings, Arc<CpuModel>)>>,
}

impl CpuRunner {
    /// A runner of one graph; nothing is prepared before the first run.
    pub fn new(graph: Graph) -> Self {
        CpuRunner { graph, models: Mutex::default() }
    }

    /// Runs the graph; outputs come in the graph's order.
    pub fn run(&self, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, Error> {
        let outputs = self.model(inputs)?.run(inputs).map_err(runtime_error)?;
        self.graph.outputs.iter().map(|o| declared(&self.graph, o, &outputs)).collect()
    }

    /// The time of each of `count` forwards.
    pub fn time(&self, inputs: &[(String, Tensor)], count: usize) -> Result<Vec<Duration>, Error> {
        let model = self.model(inputs)?;
        let once = |_| {
            let start = Instant::now();
            model.run(inputs).map_err(runtime_error)?;
            Ok(start.elapsed())
        };
        (0..count).map(once).collect()
    }

    fn model(&self, inputs: &[(String, Tensor)]) -> Result<Arc<CpuModel>, Error> {
        let shapes: Vec<(&str, &[usize])> = inputs.iter().map(|(n, t)| (n.as_str(), t.shape())).collect();
        let bindings = bindings_from(&self.graph, &shapes)
            .map_err(|e| Error::input("the shapes of the inputs do not fit the model").because(e))?;
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = models.iter().position(|(b, _)| *b == bindings) {
            let entry = models.remove(at);
            models.push(entry);
        } else {
            let model = Arc::new(self.prepare(&bindings)?);
            if models.len() >= KEPT {
                models.remove(0);
            }
            models.push((bindings, model));
        }
        let last = models.last().map(|(_, m)| m.clone());
        last.ok_or_else(|| Error::new(Kind::Internal, "no model was prepared"))
    }

    fn prepare(&self, bindings: &Bindings) -> Result<CpuModel, Error> {
        let failed = |e: Box<dyn std::error::Error + Send + Sync>| {
            Error::input("the model cannot be prepared for the CPU").because(e).help("try --backend gpu")
        };
        let mut graph = bind(&self.graph, bindings)
            .map_err(|e| runtime_error(snlp::runtime::RuntimeError::Bind(e.to_string())))?;
        lower(&mut graph, &Dialect::basic()).map_err(|e| failed(e.into()))?;
        let info = ModelInfo::standard(17);
        let options = WriteOptions { inline: true, ..WriteOptions::default() };
        let bytes = Model { graph, info }.encode(&options).map_err(|e| failed(e.into()))?;
        CpuModel::from_onnx(&bytes).map_err(runtime_error)
    }
}

/// An output under the name and dtype that the graph gives it.
fn declared(
    graph: &Graph,
    output: &snlp::passes::ir::Output,
    computed: &[(String, Tensor)],
) -> Result<(String, Tensor), Error> {
    let missing = || Error::new(Kind::Internal, format!("the CPU backend did not return '{}'", output.name));
    let (_, tensor) = computed.iter().find(|(n, _)| *n == output.name).ok_or_else(missing)?;
    let tensor = match graph.ty(output.value) {
        Some(ty) => snlp::feeds::convert(tensor, ty.dtype)
            .map_err(|e| Error::new(Kind::Internal, format!("output '{}': {e}", output.name)))?,
        None => tensor.clone(),
    };
    Ok((output.name.clone(), tensor))
}
