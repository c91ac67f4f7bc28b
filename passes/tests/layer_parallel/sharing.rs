//! Weights are moved, not copied.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;
use snlp_passes::ir::{Def, Graph, Tensor};
use snlp_passes::plan::{Init, Parallel, Plan, Segment, TapRule};
use snlp_passes::rewrite::{clean_up, parallelize};

use crate::plans::Prepared;
use crate::spec::{Spec, fit, segments, specs};
use crate::{cases, text};

/// Where the pieces of the constants that are read lie, with their lengths.
fn pieces(graph: &Graph) -> BTreeMap<usize, usize> {
    let mut found = BTreeMap::new();
    for tensor in constants(graph) {
        found.extend(tensor.parts().iter().map(|p| (p.as_ptr() as usize, p.len())));
    }
    found
}

/// Float constants that nodes read.
fn constants(graph: &Graph) -> Vec<Tensor> {
    let read: HashSet<_> = graph.nodes().flat_map(|(_, n)| n.operands().collect::<Vec<_>>()).collect();
    graph
        .values()
        .filter(|(v, _)| read.contains(v))
        .filter_map(|(_, value)| match &value.def {
            Def::Constant(t) if t.dtype().is_float() => Some(t.clone()),
            _ => None,
        })
        .collect()
}

/// What is new is a factor, or a matrix over units or lanes (a correction, or which lane is of which unit).
fn check(spec: &Spec, before: &Graph, after: &Graph) -> Result<(), TestCaseError> {
    let originals = pieces(before);
    for tensor in constants(after) {
        let fresh = tensor.parts().iter().filter(|p| originals.get(&(p.as_ptr() as usize)) != Some(&p.len()));
        let fresh: usize = fresh.map(|p| p.len()).sum();
        let is_matrix_over_units = tensor.shape().len() == 2 && tensor.shape()[0] <= spec.layers.len();
        prop_assert!(
            fresh == 0 || tensor.len() == 1 || (is_matrix_over_units && tensor.parts().len() == 1),
            "{} bytes of {:?} are copied\n{}",
            fresh,
            tensor,
            text(after)
        );
    }
    Ok(())
}

#[test]
fn stacked_weights_lie_where_the_originals_lie() {
    cases(48, &(specs(8), segments(3)), |(spec, raw)| {
        let prepared = Prepared::new(&spec);
        let mut segments = fit(&raw, spec.layers.len());
        for segment in &mut segments {
            // Predictions are no weights of the model.
            if let Segment::Parallel(p) = segment
                && p.init == Init::Preheat
            {
                p.init = Init::H0;
            }
        }
        let plan = Plan { segments }.place(spec.layers.len()).expect("fits");
        let Ok(rewritten) = parallelize(&prepared.graph, &prepared.chain, &plan) else { return Ok(()) };
        check(&spec, &prepared.graph, &rewritten.graph)?;
        let mut cleaned = rewritten.graph;
        clean_up(&mut cleaned).expect("cleans up");
        check(&spec, &prepared.graph, &cleaned)
    });
}

/// However many iterations, the weights stand once in the graph's memory and under as many constants.
#[test]
fn iterations_share_their_weights() {
    cases(24, &(specs(6), any::<bool>()), |(spec, unit)| {
        let prepared = Prepared::new(&spec);
        let graph = |iterations: usize, init: Init| {
            let mut p = Parallel::new(spec.layers.len(), 1);
            p.iterations = iterations;
            p.init = init;
            p.tap = if unit { TapRule::Unit } else { TapRule::Partial };
            prepared.rewritten(&[Segment::Parallel(p)]).expect("applies")
        };
        let bytes = |g: &Graph| pieces(g).values().sum::<usize>();
        let total = |g: &Graph| constants(g).iter().map(Tensor::byte_len).sum::<usize>();
        let once = graph(1, Init::H0);
        // Corrections, and which lane is of which unit.
        let matrices = 2 * 8 * spec.layers.len().pow(2);
        prop_assert!(bytes(&once) <= bytes(&prepared.graph) + matrices);
        for (k, init) in [(2, Init::H0), (spec.layers.len(), Init::BatchForward)] {
            let more = graph(k, init);
            prop_assert!(bytes(&more) <= bytes(&prepared.graph) + matrices);
            prop_assert!(total(&more) <= total(&once) + matrices, "{} and {}", total(&more), total(&once));
        }
        Ok(())
    });
}
