//! Several graphs over the same inputs as one, so that what they share is computed once.
//!
//! ```text
//!   x ─▶ A ─▶ B ─▶ y          x ─▶ A ─┬─▶ B ─▶ 0/y
//!   x ─▶ A ─▶ C ─▶ y                  └─▶ C ─▶ 1/y
//! ```
//!
//! The plans of one model are such graphs: they share the layers before their segments, and plans that
//! differ only in the number of iterations share all but the last ones. Fidelity: exact.

use super::copy::copy_into;
use super::{Notes, PassError, apply_pass, cse};
use crate::ir::{Bindings, Graph, GraphError, Invalid, validate};

/// Why graphs could not be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// An input that two graphs declare with different types.
    #[error("input '{name}' is {first} in one graph and {other} in another")]
    Input {
        /// Name of the input.
        name: String,
        /// Type in the first graph that has it.
        first: String,
        /// Type in a later one.
        other: String,
    },
    /// A node cannot be copied.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The result is not valid.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// Looking for what is shared failed.
    #[error(transparent)]
    Pass(#[from] PassError),
}

/// One graph with the outputs of all, in order; output `y` of graph 2 is called `2/y`. Inputs of one name
/// are one input.
///
/// # Errors
/// When two graphs declare an input of one name with different types.
pub fn merge(graphs: &[Graph]) -> Result<Graph, MergeError> {
    let mut out = Graph::new(graphs.first().map_or("", |g| &g.name));
    for (i, graph) in graphs.iter().enumerate() {
        for v in graph.inputs() {
            let name = graph.value(*v).name.clone().unwrap_or_default();
            if let Some(twin) = out.input(&name).filter(|t| out.ty(*t) != graph.ty(*v)) {
                let show = |ty: Option<&crate::ir::Type>| ty.map(ToString::to_string).unwrap_or_default();
                return Err(MergeError::Input { name, first: show(out.ty(twin)), other: show(graph.ty(*v)) });
            }
        }
        let values = copy_into(&mut out, graph, &Bindings::new())?;
        for (output, value) in graph.outputs.iter().zip(values) {
            out.add_output(&format!("{i}/{}", output.name), value);
        }
    }
    apply_pass(&mut out, &cse::PASS, &mut Notes::default())?;
    out.remove_dead();
    validate(&out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::eval_graph;
    use crate::ir::{Binary, DType, Type, Unary};
    use crate::rewrite::testing::{count, f32s, inputs, size};

    /// `exp(x) · exp(x)` then `n` times `sin`.
    fn sines(n: usize) -> Graph {
        let mut g = Graph::new("sines");
        let x = g.add_input("x", f32s(&[-1, 3]));
        let (a, b) = (g.un(Unary::Exp, x), g.un(Unary::Exp, x));
        let mut y = g.bin(Binary::Mul, a, b);
        for _ in 0..n {
            y = g.un(Unary::Sin, y);
        }
        g.add_output("y", y);
        g
    }

    #[test]
    fn what_is_shared_is_computed_once() {
        let graphs = [sines(1), sines(3), sines(0)];
        let merged = merge(&graphs).unwrap();
        assert_eq!((count(&merged, "Exp"), count(&merged, "Mul"), count(&merged, "Sin")), (1, 1, 3));
        let names: Vec<_> = merged.outputs.iter().map(|o| o.name.as_str()).collect();
        assert_eq!(names, ["0/y", "1/y", "2/y"]);
        let together = eval_graph(&merged, &inputs(&merged)).unwrap();
        for (graph, y) in graphs.iter().zip(&together) {
            assert!(eval_graph(graph, &inputs(graph)).unwrap()[0].same(y));
        }
    }

    #[test]
    fn symbols_of_inputs_stay_and_new_inputs_are_added() {
        let mut other = Graph::new("other");
        let x = other.add_input("x", f32s(&[-1, 3]));
        let z = other.add_input("z", f32s(&[3]));
        let y = other.bin(Binary::Add, x, z);
        other.add_output("y", y);
        let merged = merge(&[sines(1), other]).unwrap();
        assert_eq!(merged.inputs().len(), 2);
        for output in &merged.outputs {
            assert_eq!(merged.shape(output.value).unwrap()[0], size(-1));
        }
    }

    #[test]
    fn contradicting_inputs_are_refused() {
        let mut other = Graph::new("other");
        let x = other.add_input("x", Type::new(DType::I64, vec![size(-1)]));
        other.add_output("y", x);
        let Err(error) = merge(&[sines(1), other]) else { panic!("merged") };
        let text = error.to_string();
        assert!(text.contains("'x'") && text.contains("i64"), "{text}");
    }
}
