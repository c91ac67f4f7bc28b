//! The operators of ONNX that have a counterpart in the IR, by family.

mod attention;
mod build;
mod composed;
mod contrib;
mod elementwise;
mod grouped;
mod indexing;
mod layout;
mod linear;
mod moe;
mod multi_head;
mod norm;
mod quantize;
mod quantize_contrib;
mod reduce;
mod resize;
mod shape;
mod sliding;
mod window;

use snlp_passes::ir::{Correction, Op};

use super::context::{Builder, Built, Decline, NodeContext};
use crate::onnx::export;
use crate::onnx::proto::NodeProto;

/// The importer of an operator; `None` for what the IR has no counterpart of.
pub(super) fn lookup(domain: &str, op_type: &str) -> Option<Builder> {
    type Family = fn(&str) -> Option<Builder>;
    const STANDARD: [Family; 11] = [
        elementwise::lookup,
        linear::lookup,
        quantize::lookup,
        reduce::lookup,
        norm::lookup,
        layout::lookup,
        indexing::lookup,
        shape::lookup,
        window::lookup,
        attention::lookup,
        composed::lookup,
    ];
    const CONTRIB: [Family; 5] =
        [contrib::lookup, quantize_contrib::lookup, multi_head::lookup, grouped::lookup, moe::lookup];
    match domain {
        "" => STANDARD.iter().find_map(|family| family(op_type)),
        "com.microsoft" => CONTRIB.iter().find_map(|family| family(op_type)),
        export::CORRECTION_DOMAIN => Some(|c| {
            let op = correction(c.node).ok_or(Decline::Opaque)?;
            c.input(1)?;
            c.one(Op::Correction(op))
        }),
        _ => None,
    }
}

/// The correction that a node calls the function of: recognised by its name, so that a converted model
/// reads as what it is.
pub(super) fn correction(node: &NodeProto) -> Option<Correction> {
    if node.domain() == export::CORRECTION_DOMAIN {
        export::recognise_correction(node.op_type())
    } else {
        None
    }
}
