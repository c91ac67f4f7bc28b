//! Sessions: a graph on a device, ready for inputs of any sizes.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use snlp_passes::ir::{Bindings, DType, Def, Graph, Tensor, validate};
use snlp_passes::rewrite::{Dialect, SplitError, Stages, bind, bindings_from, lower};

use crate::device::{Gpu, lock};
use crate::error::RuntimeError;
use crate::executor::{Prepared, SharedBytes};
use crate::kernels::Scalar;
use crate::profile::{StepTime, profile};
use crate::schedule::{
    Constant, Options, Place, Plan, ScheduleError, WeightDtype, packed_scalar_of, plan, unknown_operators,
};

/// Prepared plans that a session keeps; the one that was not used for longest goes first.
const KEPT: usize = 8;

/// A graph on a device. Plans are made once per set of sizes and replayed; where values decide sizes, once
/// per set of those values.
pub struct Session {
    gpu: Arc<Gpu>,
    graph: Graph,
    options: Options,
    shared: SharedBytes,
    /// Most recently used last.
    prepared: Mutex<Vec<(Bindings, Stages<Prepared>)>>,
    /// What stays on the device, the same for all plans; zero before the first run.
    states: Mutex<Vec<wgpu::Buffer>>,
}

impl Drop for Session {
    fn drop(&mut self) {
        lock(&self.gpu.weights).release(&self.shared);
    }
}

impl Session {
    /// A session of one graph. Shapes may be symbolic; nothing is uploaded before the first run.
    ///
    /// # Errors
    /// When the graph is not valid.
    pub fn new(gpu: &Arc<Gpu>, graph: Graph, options: Options) -> Result<Session, RuntimeError> {
        validate(&graph)?;
        let shared: SharedBytes = graph
            .values()
            .filter_map(|(_, v)| match &v.def {
                Def::Constant(tensor) => Some(tensor.parts()),
                _ => None,
            })
            .flatten()
            .map(|bytes| (bytes.as_ptr() as usize, bytes.len()))
            .collect();
        lock(&gpu.weights).hold(&shared);
        Ok(Session {
            gpu: gpu.clone(),
            graph,
            options,
            shared,
            prepared: Mutex::default(),
            states: Mutex::default(),
        })
    }

    /// Sessions of several graphs over one set of weights (a model and its plans). Their stacked weights
    /// are placed together, so that each graph finds its own range of one copy.
    ///
    /// # Errors
    /// When a graph is not valid, or the stacks do not fit the device.
    pub fn group(
        gpu: &Arc<Gpu>,
        graphs: Vec<Graph>,
        options: &Options,
    ) -> Result<Vec<Session>, RuntimeError> {
        Session::group_with(gpu, graphs.into_iter().map(|g| (g, options.clone())).collect())
    }

    /// As [`Session::group`], each graph with its own options.
    ///
    /// # Errors
    /// As [`Session::group`].
    pub fn group_with(gpu: &Arc<Gpu>, graphs: Vec<(Graph, Options)>) -> Result<Vec<Session>, RuntimeError> {
        let mut stacks = vec![];
        for (graph, options) in &graphs {
            for (_, value) in graph.values() {
                if let Def::Constant(tensor) = &value.def
                    && tensor.parts().len() > 1
                    && (tensor.dtype().is_float() || likely_scalar(tensor, options).is_packed())
                    && let Some(stack) = Constant::new(
                        value.name.as_deref().unwrap_or("stack"),
                        tensor,
                        likely_scalar(tensor, options),
                    )
                {
                    stacks.push(stack);
                }
            }
        }
        // Sessions hold their weights from now on.
        let sessions = graphs.into_iter().map(|(graph, options)| Session::new(gpu, graph, options));
        let sessions = sessions.collect::<Result<Vec<_>, _>>()?;
        lock(&gpu.weights).place(gpu, &stacks)?;
        Ok(sessions)
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The device.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// Runs the model on named inputs and returns its outputs, in the graph's order.
    ///
    /// # Errors
    /// When inputs are missing, unknown, or of another type or shape than declared; when the graph cannot
    /// be scheduled at these sizes; when the device fails.
    pub fn run(&self, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, RuntimeError> {
        let ordered = self.check(inputs)?;
        let bindings = self.bindings(inputs)?;
        self.with_stages(&bindings, |stages| {
            let (prepared, ordered) = self.last(stages, ordered)?;
            let outputs = prepared.run(&ordered)?;
            Ok(prepared.plan.outputs.iter().map(|o| o.name.clone()).zip(outputs).collect())
        })
    }

    /// Runs the model `iterations` times without reading outputs back and returns the time of each
    /// forward, from submission until the device is idle.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn time(
        &self,
        inputs: &[(String, Tensor)],
        iterations: usize,
    ) -> Result<Vec<Duration>, RuntimeError> {
        let ordered = self.check(inputs)?;
        let bindings = self.bindings(inputs)?;
        self.with_stages(&bindings, |stages| {
            if stages.is_split() {
                // What decides is read back in every forward.
                let mut times = Vec::with_capacity(iterations);
                for warm in 0..=iterations {
                    let start = Instant::now();
                    let (prepared, ordered) = self.last(stages, ordered.clone())?;
                    prepared.feed(&ordered)?;
                    prepared.submit(false)?;
                    self.gpu.wait()?;
                    times.extend((warm > 0).then(|| start.elapsed()));
                }
                return Ok(times);
            }
            let (prepared, ordered) = self.last(stages, ordered)?;
            prepared.feed(&ordered)?;
            self.gpu.wait()?;
            let mut times = Vec::with_capacity(iterations);
            for _ in 0..iterations {
                let start = Instant::now();
                prepared.submit(false)?;
                self.gpu.wait()?;
                times.push(start.elapsed());
            }
            Ok(times)
        })
    }

    /// How long the host takes to record and submit a forward, the median of several.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn host_time(&self, inputs: &[(String, Tensor)]) -> Result<Duration, RuntimeError> {
        let ordered = self.check(inputs)?;
        let bindings = self.bindings(inputs)?;
        self.with_stages(&bindings, |stages| {
            let (prepared, ordered) = self.last(stages, ordered)?;
            prepared.feed(&ordered)?;
            let mut times = vec![];
            for _ in 0..5 {
                self.gpu.wait()?;
                let start = Instant::now();
                // One is submitted and one recorded.
                prepared.submit(false)?;
                times.push(start.elapsed());
            }
            self.gpu.wait()?;
            times.sort();
            Ok(times[times.len() / 2])
        })
    }

    /// The time of each dispatch of one forward.
    ///
    /// # Errors
    /// As [`Session::run`]; also when the device has no timestamps.
    pub fn profile(&self, inputs: &[(String, Tensor)]) -> Result<Vec<StepTime>, RuntimeError> {
        let ordered = self.check(inputs)?;
        let bindings = self.bindings(inputs)?;
        self.with_stages(&bindings, |stages| {
            let mut steps = vec![];
            let mut measure = |prepared: &Prepared, inputs: &[Tensor]| -> Result<(), RuntimeError> {
                prepared.feed(inputs)?;
                // Drivers compile at the first dispatch.
                prepared.submit(false)?;
                self.gpu.wait()?;
                steps.extend(profile(prepared)?);
                Ok(())
            };
            let (prepared, ordered) =
                stages.last(ordered, &|graph| self.prepare(graph), &mut |part, inputs| {
                    measure(part, inputs)?;
                    part.run(inputs)
                })?;
            measure(prepared, &ordered)?;
            Ok(steps)
        })
    }

    /// The plan at given sizes, without running or uploading anything.
    ///
    /// # Errors
    /// When a symbol has no size or the graph cannot be scheduled.
    pub fn plan_for(&self, bindings: &Bindings) -> Result<Plan, RuntimeError> {
        self.plan(self.bound(bindings)?)
    }

    /// The graph at given sizes.
    fn bound(&self, bindings: &Bindings) -> Result<Graph, RuntimeError> {
        bind(&self.graph, bindings).map_err(|error| match unknown_operators(&self.graph) {
            // Sizes that cannot be bound are a consequence of operators without inference.
            unknown if !unknown.is_empty() => ScheduleError::Unsupported(unknown).into(),
            _ => RuntimeError::Bind(error.to_string()),
        })
    }

    /// The plan of a graph without symbols.
    fn plan(&self, mut bound: Graph) -> Result<Plan, RuntimeError> {
        lower(&mut bound, &Dialect::runtime()).map_err(|e| RuntimeError::Bind(e.to_string()))?;
        Ok(plan(validate(&bound)?, self.gpu.limits(), &self.options)?)
    }

    /// Prepares a graph without symbols whose sizes are all known.
    fn prepare(&self, bound: Graph) -> Result<Prepared, RuntimeError> {
        let plan = self.plan(bound)?;
        let states = self.states(&plan)?;
        Prepared::new(&self.gpu, plan, &self.shared, &states)
    }

    /// The buffers of the states, which are made once: their sizes are the same whatever the sizes of other
    /// inputs.
    fn states(&self, plan: &Plan) -> Result<Vec<wgpu::Buffer>, RuntimeError> {
        let sizes: Vec<u64> =
            plan.slots.iter().filter(|s| matches!(s.place, Place::State(_))).map(|s| s.bytes).collect();
        if sizes.len() != self.options.states.len() {
            let message = "states do not go with sizes that values decide".to_string();
            return Err(RuntimeError::Bind(message));
        }
        let mut states = lock(&self.states);
        if states.is_empty() {
            let usage =
                wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
            for bytes in &sizes {
                states.push(self.gpu.buffer("states", *bytes, usage)?);
            }
        }
        if states.iter().map(wgpu::Buffer::size).ne(sizes.iter().map(|b| b.next_multiple_of(4))) {
            return Err(RuntimeError::Bind("the states have other sizes than in an earlier run".into()));
        }
        Ok(states.clone())
    }

    /// Runs every part but the last; returns that with its inputs.
    fn last<'a>(
        &self,
        stages: &'a mut Stages<Prepared>,
        inputs: Vec<Tensor>,
    ) -> Result<(&'a Prepared, Vec<Tensor>), RuntimeError> {
        stages.last(inputs, &|graph| self.prepare(graph), &mut |part, inputs| part.run(inputs))
    }

    /// Sizes for the model's symbols that these inputs imply.
    ///
    /// # Errors
    /// When a shape contradicts the declared one, or a symbol gets no size.
    pub fn bindings(&self, inputs: &[(String, Tensor)]) -> Result<Bindings, RuntimeError> {
        let shapes: Vec<(&str, &[usize])> = inputs.iter().map(|(n, t)| (n.as_str(), t.shape())).collect();
        bindings_from(&self.graph, &shapes).map_err(|e| RuntimeError::Bind(e.to_string()))
    }

    /// The inputs in the graph's order.
    fn check(&self, inputs: &[(String, Tensor)]) -> Result<Vec<Tensor>, RuntimeError> {
        let named: Vec<(&str, DType)> = self
            .graph
            .inputs()
            .iter()
            .filter_map(|v| {
                let name = self.graph.value(*v).name.as_deref()?;
                Some((name, self.graph.ty(*v)?.dtype))
            })
            .filter(|(name, _)| !self.options.states.iter().any(|(before, _)| before == name))
            .collect();
        let missing: Vec<String> = named
            .iter()
            .filter(|(name, _)| !inputs.iter().any(|(n, _)| n == name))
            .map(|(name, _)| name.to_string())
            .collect();
        let unknown: Vec<String> = inputs
            .iter()
            .filter(|(n, _)| !named.iter().any(|(name, _)| n == name))
            .map(|(n, _)| n.clone())
            .collect();
        if !missing.is_empty() || !unknown.is_empty() {
            return Err(RuntimeError::Inputs { missing, unknown });
        }
        let mut ordered = vec![];
        for (name, dtype) in named {
            let mut given = inputs.iter().filter(|(n, _)| n == name);
            let Some((_, tensor)) = given.next() else { continue };
            if given.next().is_some() {
                return Err(RuntimeError::Input { name: name.into(), reason: "it is given twice".into() });
            }
            if tensor.dtype() != dtype {
                let reason = format!("the model wants {dtype}, not {}", tensor.dtype());
                return Err(RuntimeError::Input { name: name.into(), reason });
            }
            ordered.push(tensor.clone());
        }
        Ok(ordered)
    }

    fn with_stages<T>(
        &self,
        bindings: &Bindings,
        work: impl FnOnce(&mut Stages<Prepared>) -> Result<T, RuntimeError>,
    ) -> Result<T, RuntimeError> {
        let mut kept = lock(&self.prepared);
        let entry = match kept.iter().position(|(b, _)| b == bindings) {
            Some(at) => kept.remove(at),
            None => {
                let stages = Stages::new(self.bound(bindings)?, &|graph| self.prepare(graph));
                let stages = stages.map_err(|error| match (&error, unknown_operators(&self.graph)) {
                    // Sizes that nothing decides are a consequence of operators without inference.
                    (RuntimeError::Split(SplitError::Undecided { .. }), unknown) if !unknown.is_empty() => {
                        ScheduleError::Unsupported(unknown).into()
                    }
                    _ => error,
                })?;
                if kept.len() >= KEPT {
                    kept.remove(0);
                }
                (bindings.clone(), stages)
            }
        };
        kept.push(entry);
        match kept.last_mut() {
            Some((_, stages)) => work(stages),
            None => Err(RuntimeError::Bind("no plan".into())),
        }
    }
}

/// How a stacked constant will lie on the device: matrices as the options say, vectors as f32.
fn likely_scalar(tensor: &Tensor, options: &Options) -> Scalar {
    let matrix = tensor.shape().len() >= 3 && tensor.shape().iter().rev().take(2).all(|d| *d > 1);
    let float = tensor.dtype().is_float();
    let half = tensor.dtype() == DType::F16 || float && options.weights == WeightDtype::F16;
    if matrix && half {
        Scalar::F16
    } else if matrix {
        packed_scalar_of(tensor.dtype())
    } else {
        Scalar::F32
    }
}
