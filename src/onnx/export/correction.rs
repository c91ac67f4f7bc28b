//! Newton corrections as ONNX functions of domain `ai.snlp`.
//!
//! The name of a function says all there is to know of the operator: `IdentityNewton` (a prefix sum),
//! `LinearNewton` (a matrix over the unit axis) or `MixingNewton` (matrices of each unit and token), then
//! `Last` where only the last unit's result is wanted, `Shared` where one old estimate serves all units,
//! and for `S` streams at axis `A` of rank `R` the suffix `_S_R_A`; a `MixingNewton` has the number of
//! units in the place of `S`. With `d = f - s` (broadcast over the units when shared) the bodies are
//!
//! ```text
//!   IdentityNewton       d + exclusive cumsum(d) + s  =  f + exclusive cumsum(d)
//!   IdentityNewtonLast   sum(d) + last s
//!   LinearNewton         T·d + s
//!   LinearNewtonLast     last rows of T·d + last s
//!   MixingNewton         f_j + a_j (s'_{j-1} - s_{j-1}), unit after unit
//! ```

use snlp_passes::ir::{Correction, CorrectionForm, Dim, Graph, Node, Op, Tensor, Type};

use super::Writer;
use super::arithmetic::index;
use super::nodes::Call;
use crate::onnx::attributes::{int, ints, tensor};
use crate::onnx::error::OnnxError;
use crate::onnx::proto::{AttributeProto, FunctionProto, NodeProto, OperatorSetIdProto};
use crate::onnx::tensor::encode;

/// Domain of the functions.
pub(crate) const DOMAIN: &str = "ai.snlp";

/// A correction with the facts that its body depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Form {
    op: Correction,
    shared: bool,
    /// Rank of `f`; matters with streams only.
    rank: usize,
    /// Units, where they are known.
    units: Option<u32>,
}

impl Form {
    /// The case of a correction whose results and old estimates have these types.
    fn of(op: Correction, f: &Type, s: &Type) -> Form {
        let units = f.shape.first().and_then(Dim::known).and_then(|n| u32::try_from(n).ok());
        Form { op, shared: s.rank() < f.rank(), rank: f.rank(), units }
    }

    fn name(&self) -> String {
        let base = match self.op.form {
            CorrectionForm::Prefix => "IdentityNewton",
            CorrectionForm::Linear { .. } => "LinearNewton",
            CorrectionForm::Scan { .. } => "MixingNewton",
        };
        let last = if self.op.last_only { "Last" } else { "" };
        let shared = if self.shared { "Shared" } else { "" };
        let streams = match (self.op.form, self.streams()) {
            (CorrectionForm::Scan { stream_axis }, _) => {
                format!("_{}_{}_{stream_axis}", self.units.unwrap_or(0), self.rank)
            }
            (_, Some((streams, axis))) => format!("_{streams}_{}_{axis}", self.rank),
            (_, None) => String::new(),
        };
        format!("{base}{last}{shared}{streams}")
    }

    fn streams(&self) -> Option<(u32, usize)> {
        match self.op.form {
            CorrectionForm::Linear { streams, stream_axis } if streams > 1 => {
                Some((streams, usize::try_from(stream_axis).ok()?))
            }
            _ => None,
        }
    }
}

/// The function that a correction is written as, for people.
pub(crate) fn function(graph: &Graph, node: &Node) -> Option<String> {
    let Op::Correction(op) = &node.op else { return None };
    let mut types = node.operands().map(|v| graph.ty(v));
    let (f, s) = (types.next()??, types.next()??);
    Some(Form::of(*op, f, s).name())
}

/// The correction that a function of this name computes; the reverse of [`Form::name`].
pub(crate) fn recognise(name: &str) -> Option<Correction> {
    let (head, numbers) = name.split_once('_').map_or((name, None), |(head, rest)| (head, Some(rest)));
    let base =
        ["IdentityNewton", "LinearNewton", "MixingNewton"].into_iter().find(|b| head.starts_with(b))?;
    let rest = &head[base.len()..];
    let rest = rest.strip_suffix("Shared").unwrap_or(rest);
    let last_only = match rest {
        "" => false,
        "Last" => true,
        _ => return None,
    };
    let numbers: Vec<u32> = match numbers {
        Some(text) => text.split('_').map(|n| n.parse().ok()).collect::<Option<_>>()?,
        None => vec![],
    };
    let form = match (base, &numbers[..]) {
        ("IdentityNewton", []) => CorrectionForm::Prefix,
        ("LinearNewton", []) => CorrectionForm::Linear { streams: 1, stream_axis: 1 },
        ("LinearNewton", [streams, _, stream_axis]) => {
            CorrectionForm::Linear { streams: *streams, stream_axis: *stream_axis }
        }
        ("MixingNewton", [_, _, stream_axis]) => CorrectionForm::Scan { stream_axis: *stream_axis },
        _ => return None,
    };
    Some(Correction { form, last_only })
}

impl Writer<'_> {
    /// A call of the function, which is added to the model.
    pub(super) fn correction(&mut self, call: &Call<'_>, op: &Correction) -> Result<(), OnnxError> {
        let ty = |i: usize| call.value(i).and_then(|v| self.graph.ty(v));
        let (Some(f), Some(s)) = (ty(0), ty(1)) else {
            return Err(OnnxError::unsupported("a correction of values of unknown type cannot be written"));
        };
        if f.dtype.size() == 2 && op.form == CorrectionForm::Prefix && !op.last_only {
            self.since(14, "CumSum of half precision")?;
        }
        let form = Form::of(*op, f, s);
        if form.units.is_none() && matches!(op.form, CorrectionForm::Scan { .. }) {
            return Err(OnnxError::unsupported("a correction of unknown many units cannot be written"));
        }
        let body = Body::of(form, self.opset)?;
        let name = form.name();
        let opset = self.opset;
        self.functions.entry(name.clone()).or_insert_with(|| body.function(&name, opset));
        let inputs = call.inputs.clone();
        let node = self.push(&call.node.name, &name, inputs, call.outputs.clone(), vec![]);
        node.domain = Some(DOMAIN.into());
        Ok(())
    }
}

const RESULT: &str = "corrected";

/// The nodes of a function body.
struct Body {
    inputs: Vec<String>,
    nodes: Vec<NodeProto>,
    opset: i64,
}

impl Body {
    fn of(form: Form, opset: i64) -> Result<Self, OnnxError> {
        let mut body = Body { inputs: vec!["f".into(), "s".into()], nodes: vec![], opset };
        if let CorrectionForm::Scan { stream_axis } = form.op.form {
            body.inputs.push("a".into());
            body.scan(form, stream_axis as usize)?;
            return Ok(body);
        }
        body.node("Sub", &["f", "s"], "d", vec![]);
        match form.op.form {
            CorrectionForm::Prefix if form.op.last_only => {
                body.sum_over_units();
                let s = body.last_estimate(form.shared);
                body.node("Add", &["total", s], RESULT, vec![]);
            }
            CorrectionForm::Prefix => {
                body.constant("unit_axis", &Tensor::scalar(0i64));
                body.node("CumSum", &["d", "unit_axis"], "before", vec![int("exclusive", 1)]);
                body.node("Add", &["f", "before"], RESULT, vec![]);
            }
            CorrectionForm::Linear { .. } => {
                body.inputs.push("t".into());
                body.linear(form)?;
            }
            CorrectionForm::Scan { .. } => {}
        }
        Ok(body)
    }

    fn node(&mut self, op_type: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) {
        self.nodes.push(NodeProto {
            op_type: Some(op_type.into()),
            input: inputs.iter().map(|s| (*s).into()).collect(),
            output: vec![output.into()],
            attribute,
            ..NodeProto::default()
        });
    }

    fn constant(&mut self, name: &str, value: &Tensor) {
        self.node("Constant", &[], name, vec![tensor("value", encode("", value))]);
    }

    fn sum_over_units(&mut self) {
        let keepdims = int("keepdims", 0);
        if self.opset >= 13 {
            self.constant("unit_axes", &Tensor::ints(&[0]));
            self.node("ReduceSum", &["d", "unit_axes"], "total", vec![keepdims]);
        } else {
            self.node("ReduceSum", &["d"], "total", vec![ints("axes", &[0]), keepdims]);
        }
    }

    /// The name of the last unit's old estimate.
    fn last_estimate(&mut self, shared: bool) -> &'static str {
        if shared {
            return "s";
        }
        self.constant("last", &Tensor::scalar(-1i64));
        self.node("Gather", &["s", "last"], "last_s", vec![int("axis", 0)]);
        "last_s"
    }

    fn slice(&mut self, input: &str, output: &str, start: i64) {
        let (from, to) = (format!("{output}_from"), format!("{output}_to"));
        self.constant(&from, &Tensor::ints(&[start]));
        self.constant(&to, &Tensor::ints(&[i64::MAX]));
        self.node("Slice", &[input, &from, &to], output, vec![]);
    }

    /// `T·d + s`, with the streams moved beside the units: `[C, .., S, ..]` is `[C·S, rest]` to `T`.
    fn linear(&mut self, form: Form) -> Result<(), OnnxError> {
        let streams = form.streams();
        let perms = match streams {
            Some((_, axis)) => Some(stream_perms(form.rank, axis).ok_or_else(|| {
                OnnxError::invalid(format!("the stream axis {axis} does not fit rank {}", form.rank))
            })?),
            None => None,
        };
        let moved = match &perms {
            Some((there, _)) => {
                self.node("Transpose", &["d"], "moved", vec![ints("perm", there)]);
                "moved"
            }
            None => "d",
        };
        self.node("Shape", &["t"], "t_shape", vec![]);
        self.slice("t_shape", "rows", 1);
        self.constant("rest", &Tensor::ints(&[-1]));
        self.node("Concat", &["rows", "rest"], "flat_shape", vec![int("axis", 0)]);
        self.node("Reshape", &[moved, "flat_shape"], "flat", vec![]);
        self.node("Shape", &[moved], "moved_shape", vec![]);
        let (matrix, shape) = if form.op.last_only {
            let rows = streams.map_or(1, |(s, _)| i64::from(s));
            self.slice("t", "last_t", -rows);
            self.slice("moved_shape", "unit_shape", 1);
            ("last_t", "unit_shape")
        } else {
            ("t", "moved_shape")
        };
        self.node("MatMul", &[matrix, "flat"], "product", vec![]);
        self.node("Reshape", &["product", shape], "shaped", vec![]);
        let back = match &perms {
            Some((_, back)) => {
                let unit: Vec<i64> = back[1..].iter().map(|a| a - 1).collect();
                let perm = if form.op.last_only { &unit } else { back };
                self.node("Transpose", &["shaped"], "back", vec![ints("perm", perm)]);
                "back"
            }
            None => "shaped",
        };
        let s = if form.op.last_only { self.last_estimate(form.shared) } else { "s" };
        self.node("Add", &[back, s], RESULT, vec![]);
        Ok(())
    }

    /// The recurrence, unrolled over the units; states are `[tokens.., S, D]` to the products.
    fn scan(&mut self, form: Form, axis: usize) -> Result<(), OnnxError> {
        let misfit = || OnnxError::invalid(format!("the stream axis {axis} does not fit rank {}", form.rank));
        let perm = mixed_perm(form.rank, axis).ok_or_else(misfit)?;
        let straight = perm.iter().enumerate().all(|(i, p)| index(i) == *p);
        let turned = |body: &mut Self, name: &str, to: String, perm: &[i64]| match straight {
            true => name.to_string(),
            false => {
                body.node("Transpose", &[name], &to, vec![ints("perm", perm)]);
                to
            }
        };
        let units = form.units.unwrap_or(0);
        let mut before: Option<String> = None;
        let mut results = Vec::new();
        for j in 0..units {
            let at = |name: &str, unit: u32| format!("{name}_{unit}");
            self.constant(&at("unit", j), &Tensor::scalar(i64::from(j)));
            self.node("Gather", &["f", &at("unit", j)], &at("f", j), vec![int("axis", 0)]);
            let f = turned(self, &at("f", j), at("turned_f", j), &perm);
            let corrected = match &before {
                None => f,
                Some(before) => {
                    let old = if form.shared {
                        "s".to_string()
                    } else {
                        let unit = at("unit", j - 1);
                        self.node("Gather", &["s", &unit], &at("s", j), vec![int("axis", 0)]);
                        at("s", j)
                    };
                    let old = turned(self, &old, at("turned_s", j), &perm);
                    self.node("Sub", &[before, &old], &at("delta", j), vec![]);
                    self.node("Gather", &["a", &at("unit", j)], &at("a", j), vec![int("axis", 0)]);
                    self.node("MatMul", &[&at("a", j), &at("delta", j)], &at("moved", j), vec![]);
                    self.node("Add", &[&f, &at("moved", j)], &at("sum", j), vec![]);
                    at("sum", j)
                }
            };
            results.push(corrected.clone());
            before = Some(corrected);
        }
        let mut back = vec![0i64; perm.len()];
        for (to, from) in perm.iter().enumerate() {
            back[usize::try_from(*from).unwrap_or(0)] = index(to);
        }
        if form.op.last_only {
            let last = before.unwrap_or_default();
            self.node("Transpose", &[&last], RESULT, vec![ints("perm", &back)]);
            return Ok(());
        }
        self.constant("unit_axes", &Tensor::ints(&[0]));
        let mut rows = Vec::new();
        for (j, result) in results.iter().enumerate() {
            let whole = turned(self, result, format!("back_{j}"), &back);
            let row = format!("row_{j}");
            if self.opset >= 13 {
                self.node("Unsqueeze", &[&whole, "unit_axes"], &row, vec![]);
            } else {
                self.node("Unsqueeze", &[&whole], &row, vec![ints("axes", &[0])]);
            }
            rows.push(row);
        }
        let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
        self.node("Concat", &rows, RESULT, vec![int("axis", 0)]);
        Ok(())
    }

    fn function(self, name: &str, opset: i64) -> FunctionProto {
        FunctionProto {
            name: Some(name.into()),
            domain: Some(DOMAIN.into()),
            input: self.inputs,
            output: vec![RESULT.into()],
            node: self.nodes,
            doc_string: Some(DOC.into()),
            opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(opset) }],
            ..FunctionProto::default()
        }
    }
}

const DOC: &str = "Structured Newton correction over the unit axis (SNLP, arXiv 2605.17842): from the units' \
                   evaluations f and the old estimates s of their outputs, the corrected estimates.";

/// The permutation that brings `axis` beside the unit axis, and its inverse.
fn stream_perms(rank: usize, axis: usize) -> Option<(Vec<i64>, Vec<i64>)> {
    if axis == 0 || axis >= rank {
        return None;
    }
    let mut there = vec![0, axis];
    there.extend((1..rank).filter(|a| *a != axis));
    let mut back = vec![0i64; rank];
    for (to, from) in there.iter().enumerate() {
        back[*from] = index(to);
    }
    Some((there.into_iter().map(index).collect(), back))
}

/// The permutation of a state (without the unit axis) that brings the streams, at `axis` of the units'
/// states, beside the features.
fn mixed_perm(rank: usize, axis: usize) -> Option<Vec<i64>> {
    if axis == 0 || axis + 1 >= rank {
        return None;
    }
    let mut perm: Vec<usize> = (0..rank - 1).filter(|a| *a != axis - 1).collect();
    perm.insert(rank - 3, axis - 1);
    Some(perm.into_iter().map(index).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_operator() {
        for last_only in [false, true] {
            for shared in [false, true] {
                for form in [
                    CorrectionForm::Prefix,
                    CorrectionForm::Linear { streams: 1, stream_axis: 1 },
                    CorrectionForm::Linear { streams: 4, stream_axis: 3 },
                    CorrectionForm::Scan { stream_axis: 3 },
                ] {
                    let op = Correction { form, last_only };
                    assert_eq!(recognise(&Form { op, shared, rank: 5, units: Some(3) }.name()), Some(op));
                }
            }
        }
        for other in ["Newton", "IdentityNewtonLastly", "LinearNewton_4_5", "IdentityNewton_4_5_3", ""] {
            assert_eq!(recognise(other), None, "{other}");
        }
    }

    #[test]
    fn permutations_are_inverse() {
        let (there, back) = stream_perms(5, 3).unwrap();
        assert_eq!(there, [0, 3, 1, 2, 4]);
        assert_eq!(back, [0, 2, 3, 1, 4]);
        assert!(stream_perms(3, 0).is_none() && stream_perms(3, 3).is_none());
    }
}
