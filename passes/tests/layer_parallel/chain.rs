//! What `find_chain` says of random models.

use std::collections::BTreeMap;

use proptest::test_runner::TestCaseError;
use snlp_passes::analysis::{Chain, Kind, find_chain};
use snlp_passes::ir::Dim;
use snlp_passes::rewrite::clean_up;

use crate::build::build;

use crate::spec::{Blocks, LayerSpec, Model, Placement, Side, Spec, specs};
use crate::{cases, text};

#[test]
fn chains_are_found_with_their_classes_taps_and_sides() {
    cases(96, &specs(8), |spec| {
        let (mut graph, _) = build(&Model::new(&spec));
        clean_up(&mut graph).expect("cleans up");
        let chain = find_chain(&graph).map_err(|e| TestCaseError::fail(format!("{e} at {}", e.at)))?;
        check(&spec, &chain).map_err(|e| TestCaseError::fail(format!("{e}\n{}", text(&graph))))
    });
}

fn check(spec: &Spec, chain: &Chain) -> Result<(), String> {
    let equal = |what: &str, found: String, expected: String| {
        if found == expected { Ok(()) } else { Err(format!("{what}: {found}, expected {expected}")) }
    };
    equal("layers", chain.layers.len().to_string(), spec.layers.len().to_string())?;
    let found: Vec<_> = chain.classes.iter().map(|c| c.layers.clone()).collect();
    equal("classes", format!("{found:?}"), format!("{:?}", classes(spec)))?;
    for (i, layer) in chain.layers.iter().enumerate() {
        equal(
            "class of a layer",
            format!("{}", chain.classes[layer.class].layers.contains(&i)),
            "true".into(),
        )?;
    }
    let found: Vec<_> = chain.taps.iter().map(|t| (t.after_layer, t.inside)).collect();
    equal("taps", format!("{found:?}"), format!("{:?}", taps(spec)))?;
    let mut found: Vec<_> = chain.side_inputs.iter().map(|s| s.layers.clone()).collect();
    found.sort();
    equal("side inputs", format!("{found:?}"), format!("{:?}", sides(spec)))?;
    equal("kind", chain.kind.to_string(), kind(spec).to_string())?;
    equal("hidden", chain.hidden.to_string(), Dim::from(spec.hidden).to_string())?;
    equal("streams", chain.streams.count.to_string(), "1".into())
}

fn classes(spec: &Spec) -> Vec<Vec<usize>> {
    let shape = |l: &LayerSpec| {
        let width = if l.blocks == Blocks::Attention { 0 } else { l.mlp_width };
        (l.blocks, l.side, width, l.map.is_some())
    };
    let mut classes: Vec<Vec<usize>> = Vec::new();
    for (i, layer) in spec.layers.iter().enumerate() {
        match classes.iter_mut().find(|c| shape(&spec.layers[c[0]]) == shape(layer)) {
            Some(class) => class.push(i),
            None => classes.push(vec![i]),
        }
    }
    classes
}

fn taps(spec: &Spec) -> Vec<(usize, bool)> {
    let inner = |t: usize| t > 0 && t < spec.layers.len();
    let mut taps: Vec<_> = spec.taps.iter().map(|t| t.after_layer).filter(|t| inner(*t)).collect();
    taps.sort_unstable();
    taps.into_iter().map(|t| (t, false)).collect()
}

/// Numbers of the layers that read each side input, sorted.
fn sides(spec: &Spec) -> Vec<Vec<usize>> {
    let mut readers: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (i, layer) in spec.layers.iter().enumerate() {
        let side = match layer.side {
            Side::None => None,
            Side::SharedValue | Side::SharedGate => Some("shared".to_string()),
            Side::OwnValue | Side::GatedTable => Some(format!("own {i}")),
        };
        if let Some(side) = side {
            readers.entry(side).or_default().push(i);
        }
        if spec.mask {
            readers.entry("mask".into()).or_default().push(i);
        }
        // The chain's input counts as read by the first layer.
        if layer.map.is_some() && i > 0 {
            readers.entry("x0".into()).or_insert_with(|| vec![0]).push(i);
        }
    }
    let mut sides: Vec<_> = readers.into_values().collect();
    sides.sort();
    sides
}

fn kind(spec: &Spec) -> Kind {
    match (spec.placement, spec.layers[1].blocks) {
        (Placement::Post, _) => Kind::PostNorm,
        (_, Blocks::Attention | Blocks::AttentionMlp | Blocks::AttentionMlpMlp) => Kind::PreNorm,
        _ => Kind::ParallelResidual,
    }
}
