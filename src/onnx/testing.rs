//! Models made in tests.

use std::path::Path;

use prost::Message;
use snlp_passes::ir::{DType, Dim, Tensor, Type};

use super::attributes;
use super::dims::value_info;
use super::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto};
use super::tensor::encode;
use super::{Model, OnnxError};

/// A node called `name` in text form: `op`, operands and results separated by spaces (`_` for an absent
/// one).
pub(super) fn node(op: &str, inputs: &str, outputs: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    let names = |text: &str| -> Vec<String> {
        text.split_whitespace().map(|n| if n == "_" { String::new() } else { n.into() }).collect()
    };
    let (domain, op_type) = op.split_once("::").unwrap_or(("", op));
    NodeProto {
        op_type: Some(op_type.into()),
        domain: Some(domain.into()),
        name: Some(format!("{op_type}_{}", outputs.replace(' ', "_"))),
        input: names(inputs),
        output: names(outputs),
        attribute,
        ..NodeProto::default()
    }
}

/// A float tensor's declaration; sizes are numbers, names or `?`.
pub(super) fn float(name: &str, shape: &str) -> ValueInfoProto {
    value(name, DType::F32, shape)
}

pub(super) fn value(name: &str, dtype: DType, shape: &str) -> ValueInfoProto {
    let dim = |d: &str| match (d, d.parse::<i64>()) {
        ("?", _) => Dim::symbol("_1"),
        (_, Ok(n)) => n.into(),
        _ => Dim::symbol(d),
    };
    value_info(name, &Type::new(dtype, shape.split_whitespace().map(dim).collect()))
}

pub(super) fn opset(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto { domain: Some(domain.into()), version: Some(version) }
}

/// A model of these nodes with inputs `x [batch, 4]`, constants and output `y`.
pub(super) fn model(version: i64, nodes: Vec<NodeProto>, constants: Vec<(&str, Tensor)>) -> ModelProto {
    ModelProto {
        ir_version: Some(10),
        opset_import: vec![opset("", version)],
        graph: Some(GraphProto {
            name: Some("g".into()),
            node: nodes,
            initializer: constants.iter().map(|(name, t)| encode(name, t)).collect(),
            input: vec![float("x", "batch 4")],
            output: vec![ValueInfoProto { name: Some("y".into()), ..ValueInfoProto::default() }],
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    }
}

pub(super) fn import(model: &ModelProto) -> Result<Model, OnnxError> {
    Model::decode(model.encode_to_vec().into(), Path::new("/nonexistent"))
}

/// The operators of a model in order of evaluation, by name.
pub(super) fn operators(model: &Model) -> Vec<String> {
    let order = model.graph.topological().unwrap();
    order.iter().map(|id| model.graph.node(*id).unwrap().op.name()).collect()
}

/// The message of the error that importing gives.
pub(super) fn error(model: &ModelProto) -> String {
    match import(model) {
        Ok(_) => panic!("was imported"),
        Err(e) => format!("{e:?}"),
    }
}

/// Shorthand of an integer attribute.
pub(super) fn int(name: &str, i: i64) -> AttributeProto {
    attributes::int(name, i)
}
