//! A model on its way through the compiler: read, cleaned up, its chain found, rewritten.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use snlp_passes::analysis::{Chain, Stopped, find_chain};
use snlp_passes::ir::{DType, Def, Graph, Op, Tensor};
use snlp_passes::plan::{Init, PlacedPlan, Plan, PlanError};
use snlp_passes::rewrite::{CleanUpReport, Parallelized, Predictions, clean_up, parallelize_with};

use crate::error::{Error, Kind};
use crate::language::inputs::one_sequence;
use crate::onnx::{ErrorKind, Model, NEWEST_IR, OnnxError};
use crate::preheat;
use crate::text;

/// Keys that a converted model carries.
pub mod metadata {
    /// The plan in normal form.
    pub const PLAN: &str = "snlp.plan";
    /// Version of the program that converted.
    pub const VERSION: &str = "snlp.version";
    /// SHA-256 of the file that was converted.
    pub const SOURCE: &str = "snlp.source_sha256";
    /// What the chain of the original was, as JSON, for `inspect`.
    pub const CHAIN: &str = "snlp.chain";
}

/// A model, cleaned up, with its chain.
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// The model as read.
    pub model: Model,
    /// The graph after clean-up.
    pub graph: Graph,
    /// What the clean-up did.
    pub clean_up: CleanUpReport,
    /// The chain of layers, or what stopped the search.
    pub chain: Result<Chain, Stopped>,
    /// What is calibrated for the model, once a plan has asked for it.
    predictions: OnceLock<Predictions>,
}

/// What plans that start from no predictions start from.
static NONE: Predictions = Predictions::new();

/// Nodes of one operator that nothing here can compute.
pub struct Unsupported {
    /// How many there are.
    pub nodes: usize,
    /// Name of the first.
    pub first: String,
    /// What of it is not understood, where the operator is known.
    pub reason: Option<String>,
}

impl Source {
    /// Reads a model, cleans it up and looks for its chain.
    ///
    /// # Errors
    /// When the file cannot be read or is invalid. A model without a chain is no error.
    pub fn read(path: &Path) -> Result<Source, Error> {
        Source::of(path, Model::read(path).map_err(|e| onnx_error(e, path))?)
    }

    /// As [`Source::read`], of a model that is there already; `path` is what it is called by.
    ///
    /// # Errors
    /// When the model contradicts itself.
    pub fn of(path: &Path, model: Model) -> Result<Source, Error> {
        let mut graph = model.graph.clone();
        let clean_up = clean_up(&mut graph).map_err(|e| {
            Error::input(format!("{}: cannot simplify the model", path.display()))
                .because(e)
                .help("check the model with onnx.checker; if it passes, please report this")
        })?;
        let chain = find_chain(&graph);
        Ok(Source { path: path.into(), model, graph, clean_up, chain, predictions: OnceLock::new() })
    }

    /// The same model for one sequence of tokens without padding ([`one_sequence`]), with its chain.
    ///
    /// # Errors
    /// When the model does not take one sequence of any length.
    pub fn of_one_sequence(&self) -> Result<Source, Error> {
        let graph = one_sequence(&self.graph).map_err(|e| e.about(&self.path))?;
        let chain = find_chain(&graph);
        let (path, model) = (self.path.clone(), self.model.clone());
        let clean_up = CleanUpReport::default();
        Ok(Source { path, model, graph, clean_up, chain, predictions: OnceLock::new() })
    }

    /// The files that the model was read from, each with what it is.
    pub fn files(&self) -> Vec<(&str, &Path)> {
        let weights = |p| ("a file of the model's own weights", PathBuf::as_path(p));
        let files = self.model.info.data_files.iter().map(weights);
        std::iter::once(("the model itself", self.path.as_path())).chain(files).collect()
    }

    /// What people should know about a model that is read all the same.
    pub fn notices(&self) -> Vec<String> {
        let version = self.model.info.ir_version;
        if version <= NEWEST_IR {
            return vec![];
        }
        vec![format!(
            "{}: IR version {version} is newer than {NEWEST_IR}, the newest known; \
             what it adds is not understood",
            self.path.display()
        )]
    }

    /// What people should know of a plan for this model.
    pub fn plan_notices(&self, plan: &PlacedPlan) -> Vec<String> {
        if plan.shares_caches() {
            vec![format!(
                "{}: its caches hold the keys and values of a segment's last iteration alone, so that decoding \
                 with plan '{plan}' approximates the plan's full forward; kv=exact adds inputs and outputs for \
                 the other iterations, k=1 needs none",
                self.path.display()
            )]
        } else {
            vec![]
        }
    }

    /// The value of a metadata key.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.model.info.metadata.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// The plan that the model was converted with, if it was.
    pub fn converted(&self) -> Option<&str> {
        self.metadata(metadata::PLAN)
    }

    /// Whether the model was converted with a plan that rewrites layers.
    pub fn is_rewritten(&self) -> bool {
        self.converted().is_some_and(|plan| plan != "sequential")
    }

    /// Operators that nothing here can compute. Those that only lack the types of what unknown operators make are
    /// not listed.
    pub fn unsupported(&self) -> BTreeMap<String, Unsupported> {
        let mut found = BTreeMap::new();
        for (id, node) in self.graph.nodes() {
            let Op::Opaque(op) = &node.op else { continue };
            let typed = node.operands().all(|v| self.graph.ty(v).is_some());
            if typed || !crate::onnx::knows(&op.domain, &op.op_type) {
                let first = || Unsupported {
                    nodes: 0,
                    first: node.name.clone(),
                    reason: self.model.info.declined.get(&id).cloned(),
                };
                found.entry(node.op.name()).or_insert_with(first).nodes += 1;
            }
        }
        found
    }

    /// [`Source::unsupported`] as text.
    fn unsupported_text(&self) -> Option<String> {
        let one = |(op, u): (String, Unsupported)| {
            let first = text::name(&u.first);
            let place = match u.nodes {
                1 => format!("node '{first}'"),
                n => format!("{n} nodes, first '{first}'"),
            };
            let reason = u.reason.map(|r| format!(": {}", text::escaped(&r))).unwrap_or_default();
            format!("{} ({place}{reason})", text::name(&op))
        };
        let list: Vec<String> = self.unsupported().into_iter().map(one).collect();
        (!list.is_empty()).then(|| list.join(", "))
    }

    /// An error that lists all unsupported operators, if there are any.
    ///
    /// # Errors
    /// When there are.
    pub fn require_supported(&self) -> Result<(), Error> {
        match self.unsupported_text() {
            None => Ok(()),
            Some(list) => {
                Err(Error::input(format!("{}: unsupported operators: {list}", self.path.display()))
                    .help("export the model with standard operators only; README.md lists those supported"))
            }
        }
    }

    /// The chain of layers.
    ///
    /// # Errors
    /// When there is none: why, and where.
    pub fn chain(&self) -> Result<&Chain, Error> {
        if let Some(plan) = self.converted().filter(|_| self.is_rewritten()) {
            return Err(Error::input(format!(
                "{}: the model is converted already, with plan '{}'",
                self.path.display(),
                text::name(plan)
            ))
            .help("apply plans to the original model"));
        }
        self.chain.as_ref().map_err(|stopped| {
            if let Err(unsupported) = self.require_supported() {
                return unsupported;
            }
            let place = if stopped.at.is_empty() { String::new() } else { format!(" at {}", stopped.at) };
            Error::input(format!(
                "{}: the model has no chain of layers: {}",
                self.path.display(),
                text::sentence(&format!("{}{place}", stopped.reason))
            ))
            .help("layer-parallelism needs a stack of residual layers; 'snlp inspect --explain' says more")
        })
    }

    /// Lays a plan over the model's chain. The sequential plan fits every model.
    ///
    /// # Errors
    /// When the model has no chain or too few layers.
    pub fn place(&self, plan: &Plan) -> Result<PlacedPlan, Error> {
        if plan.segments.is_empty() {
            let layers =
                if self.is_rewritten() { 0 } else { self.chain.as_ref().map_or(0, |c| c.layers.len()) };
            return plan.place(layers).map_err(plan_error);
        }
        let chain = self.chain()?;
        let placed = plan.place(chain.layers.len()).map_err(|e| {
            let error = plan_error(e).about(&self.path);
            match self.unsupported_text() {
                Some(list) => error.help(format!("operators that snlp does not know end the chain: {list}")),
                None => error,
            }
        })?;
        Ok(placed.settle_caches(|layers| chain.caches.iter().any(|c| layers.contains(&c.layer))))
    }

    /// The layer-parallel graph of a placed plan.
    ///
    /// # Errors
    /// When the chain cannot be rewritten so, or the plan is one for decoding.
    pub fn rewrite(&self, plan: &PlacedPlan) -> Result<Parallelized, Error> {
        if plan.starts_from(Init::Warm) {
            return Err(Error::input(format!(
                "{}: plan '{plan}' starts from the token before, which only decoding knows",
                self.path.display()
            ))
            .help("give it to 'snlp generate'; elsewhere use init=h0, batch_fwd or preheat"));
        }
        self.rewrite_for_steps(plan)
    }

    /// As [`Source::rewrite`], to derive a decoding step of: the graph may have inputs `warm.N` beside the model's,
    /// each with an output `warm.N.next` for the next step.
    ///
    /// # Errors
    /// When the chain cannot be rewritten so.
    pub fn rewrite_for_steps(&self, plan: &PlacedPlan) -> Result<Parallelized, Error> {
        let streams = self.chain.as_ref().map_or(1, |c| c.streams.count);
        if streams > 1 && (plan.starts_from(Init::Preheat) || plan.starts_from(Init::Warm)) {
            return Err(Error::input(format!(
                "{}: plan '{plan}': init=preheat and init=warm are for one residual stream; this model has {streams}",
                self.path.display()
            ))
            .help("use init=h0 or init=batch_fwd"));
        }
        if plan.is_sequential() {
            return Ok(Parallelized { graph: self.graph.clone(), segments: vec![], corrections: 0 });
        }
        parallelize_with(&self.graph, self.chain()?, plan, self.predictions(plan)?).map_err(|e| {
            let help = match plan.starts_from(Init::Preheat) && e.to_string().contains("calibrat") {
                true => "make the calibration again with 'snlp calibrate'",
                false => "try another division of the layers; 'snlp inspect' shows the classes",
            };
            Error::input(format!("{}: plan '{plan}' cannot be applied", self.path.display()))
                .because(e)
                .help(help)
        })
    }

    /// What a plan's segments start from, where they start from predictions.
    ///
    /// # Errors
    /// When nothing was calibrated for this model.
    fn predictions(&self, plan: &PlacedPlan) -> Result<&Predictions, Error> {
        if !plan.starts_from(Init::Preheat) {
            return Ok(&NONE);
        }
        if let Some(read) = self.predictions.get() {
            return Ok(read);
        }
        let read = preheat::required(&self.path, self.model.info.fingerprint.sha256())?;
        Ok(self.predictions.get_or_init(|| read))
    }

    /// Elements of all weights (constants of a float type, and quantised ones of 8 bits); scalars are none.
    pub fn parameters(&self) -> u64 {
        let weight = |d: DType| d.is_float() || matches!(d, DType::I8 | DType::U8);
        let counts = |t: &Tensor| weight(t.dtype()) && t.len() > 1;
        constants(&self.model.graph).filter(|t| counts(t)).map(|t| t.len() as u64).sum()
    }

    /// Bytes of the model on disk, external data included.
    pub fn bytes(&self) -> u64 {
        let file = self.path.metadata().map_or(0, |m| m.len());
        let weights: u64 = constants(&self.model.graph).map(|t| t.byte_len() as u64).sum();
        if weights > file { file + weights } else { file }
    }
}

fn constants(graph: &Graph) -> impl Iterator<Item = &Tensor> {
    graph.values().filter_map(|(_, v)| match &v.def {
        Def::Constant(t) => Some(t),
        _ => None,
    })
}

/// Reads a plan's text.
///
/// # Errors
/// Of kind usage when it is ill-formed, input when it needs what is not implemented.
pub fn parse_plan(text: &str) -> Result<Plan, Error> {
    text.parse().map_err(plan_error)
}

/// What a refused plan becomes.
pub fn plan_error(e: PlanError) -> Error {
    match &e {
        PlanError::Syntax { .. } => Error::usage(e.to_string())
            .help("a plan is 'sequential' or segments such as 's8 12xF2[k=2]'; see 'snlp --help'"),
        PlanError::File { .. } => {
            Error::input(e.to_string()).help("give what stands behind 'plan =' in the file")
        }
        PlanError::TooManyLayers { .. } => {
            Error::input(e.to_string()).help("use fewer or smaller units; 'snlp inspect' shows the layers")
        }
    }
}

/// What an error about a model file becomes.
pub fn onnx_error(e: OnnxError, model: &Path) -> Error {
    let kind = if e.kind() == ErrorKind::Io { Kind::Io } else { Kind::Input };
    let mut text = e.to_string();
    if let Some(remedy) = e.remedy_text()
        && let Some(stripped) = text.strip_suffix(&format!(" ({remedy})"))
    {
        text = stripped.to_string();
    }
    let named = text.contains(&*model.to_string_lossy());
    let message = if named { text } else { format!("{}: {text}", model.display()) };
    let help = match (e.remedy_text(), kind) {
        (Some(remedy), _) => remedy.to_string(),
        (None, Kind::Io) => "check the path and its permissions".into(),
        (None, _) => "export the model again, and check it with onnx.checker".into(),
    };
    let error = Error::new(kind, message).help(help);
    match std::error::Error::source(&e) {
        Some(cause) => error.because(cause.to_string()),
        None => error,
    }
}
