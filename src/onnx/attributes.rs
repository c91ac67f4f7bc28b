//! Typed access to the attributes of a node, and their form in the IR.

use std::borrow::Cow;
use std::collections::HashMap;

use prost::Message;
use snlp_passes::ir::Attribute;

use super::error::OnnxError;
use super::proto::attribute_proto::AttributeType;
use super::proto::{AttributeProto, GraphProto, NodeProto, TensorProto};

/// The values that a function call gives to the function's attributes.
pub(super) type Arguments = HashMap<String, AttributeProto>;

/// The attributes of one node, references to a function's attributes resolved.
pub(super) struct Attributes<'a>(Vec<Cow<'a, AttributeProto>>);

impl<'a> Attributes<'a> {
    /// The attributes of `node`, inside a function called with `arguments`. A reference to an argument
    /// that was not given leaves the attribute out.
    pub(super) fn of(node: &'a NodeProto, arguments: Option<&Arguments>) -> Self {
        let resolve = |a: &'a AttributeProto| match arguments {
            None => Some(Cow::Borrowed(a)),
            Some(arguments) => resolved(a, arguments).map(Cow::Owned),
        };
        Attributes(node.attribute.iter().filter_map(resolve).collect())
    }

    /// All attributes.
    pub(super) fn iter(&self) -> impl Iterator<Item = &AttributeProto> + '_ {
        self.0.iter().map(|a| &**a)
    }

    pub(super) fn get(&self, name: &str) -> Option<&AttributeProto> {
        self.iter().find(|a| a.name() == name)
    }

    fn typed(&self, name: &str, ty: AttributeType) -> Result<Option<&AttributeProto>, OnnxError> {
        let Some(a) = self.get(name) else { return Ok(None) };
        // Files of the first IR versions leave the type out.
        if a.r#type() != AttributeType::Undefined && a.r#type() != ty {
            let (found, wanted) = (a.r#type().as_str_name(), ty.as_str_name());
            return Err(OnnxError::invalid(format!("attribute '{name}' is of type {found}, not {wanted}")));
        }
        Ok(Some(a))
    }

    pub(super) fn int(&self, name: &str) -> Result<Option<i64>, OnnxError> {
        Ok(self.typed(name, AttributeType::Int)?.map(|a| a.i()))
    }

    pub(super) fn float(&self, name: &str) -> Result<Option<f32>, OnnxError> {
        Ok(self.typed(name, AttributeType::Float)?.map(|a| a.f()))
    }

    pub(super) fn ints(&self, name: &str) -> Result<Option<&[i64]>, OnnxError> {
        Ok(self.typed(name, AttributeType::Ints)?.map(|a| &a.ints[..]))
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<String>, OnnxError> {
        let bytes = self.typed(name, AttributeType::String)?.map(|a| a.s());
        Ok(bytes.map(|b| String::from_utf8_lossy(b).into_owned()))
    }

    pub(super) fn tensor(&self, name: &str) -> Result<Option<&TensorProto>, OnnxError> {
        Ok(self.typed(name, AttributeType::Tensor)?.and_then(|a| a.t.as_ref()))
    }

    pub(super) fn graph(&self, name: &str) -> Result<Option<&GraphProto>, OnnxError> {
        Ok(self.typed(name, AttributeType::Graph)?.and_then(|a| a.g.as_ref()))
    }
}

/// An attribute with references to function attributes replaced, in subgraphs too.
fn resolved(attribute: &AttributeProto, arguments: &Arguments) -> Option<AttributeProto> {
    if !attribute.ref_attr_name().is_empty() {
        let mut value = arguments.get(attribute.ref_attr_name())?.clone();
        value.name = attribute.name.clone();
        return Some(value);
    }
    let mut out = attribute.clone();
    for graph in out.g.iter_mut().chain(&mut out.graphs) {
        for node in &mut graph.node {
            let attributes = std::mem::take(&mut node.attribute);
            node.attribute = attributes.iter().filter_map(|a| resolved(a, arguments)).collect();
        }
    }
    Some(out)
}

/// The subgraphs of a node.
pub(super) fn subgraphs(node: &NodeProto) -> impl Iterator<Item = &GraphProto> + '_ {
    node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs))
}

/// An attribute as an opaque operator carries it.
pub(super) fn to_ir(a: &AttributeProto) -> (String, Attribute) {
    let value = match a.r#type() {
        AttributeType::Int => Attribute::Int(a.i()),
        AttributeType::Float => Attribute::Float(a.f()),
        AttributeType::String => Attribute::Bytes(a.s().to_vec()),
        AttributeType::Ints => Attribute::Ints(a.ints.clone()),
        AttributeType::Floats => Attribute::Floats(a.floats.clone()),
        AttributeType::Strings => Attribute::ByteLists(a.strings.iter().map(|s| s.to_vec()).collect()),
        _ => Attribute::Encoded(a.encode_to_vec()),
    };
    (a.name().to_string(), value)
}

/// The reverse of [`to_ir`].
pub(super) fn from_ir(name: &str, value: &Attribute) -> Result<AttributeProto, OnnxError> {
    Ok(match value {
        Attribute::Int(i) => int(name, *i),
        Attribute::Float(f) => float(name, *f),
        Attribute::Bytes(s) => bytes(name, s),
        Attribute::Ints(v) => ints(name, v),
        Attribute::Floats(v) => AttributeProto { floats: v.clone(), ..empty(name, AttributeType::Floats) },
        Attribute::ByteLists(v) => AttributeProto {
            strings: v.iter().map(|s| s.clone().into()).collect(),
            ..empty(name, AttributeType::Strings)
        },
        Attribute::Encoded(data) => AttributeProto { name: Some(name.into()), ..decode(name, data)? },
    })
}

fn decode(name: &str, data: &[u8]) -> Result<AttributeProto, OnnxError> {
    AttributeProto::decode(data).map_err(|e| {
        OnnxError::invalid(format!("attribute '{name}' is no encoded ONNX attribute")).because(e)
    })
}

fn empty(name: &str, ty: AttributeType) -> AttributeProto {
    AttributeProto { name: Some(name.into()), r#type: Some(ty as i32), ..AttributeProto::default() }
}

/// An integer attribute.
pub(super) fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { i: Some(i), ..empty(name, AttributeType::Int) }
}

/// A float attribute.
pub(super) fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { f: Some(f), ..empty(name, AttributeType::Float) }
}

/// A string attribute.
pub(super) fn bytes(name: &str, s: &[u8]) -> AttributeProto {
    AttributeProto { s: Some(s.to_vec().into()), ..empty(name, AttributeType::String) }
}

/// A list of integers.
pub(super) fn ints(name: &str, v: &[i64]) -> AttributeProto {
    AttributeProto { ints: v.to_vec(), ..empty(name, AttributeType::Ints) }
}

/// A tensor attribute.
pub(super) fn tensor(name: &str, t: TensorProto) -> AttributeProto {
    AttributeProto { t: Some(t), ..empty(name, AttributeType::Tensor) }
}
