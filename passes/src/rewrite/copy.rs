//! A graph copied into another, node by node in order, so that every type is inferred afresh.

use std::collections::HashMap;

use crate::ir::{Bindings, Def, Dim, Graph, GraphError, Op, Symbol, Type, ValueId};

/// What stands for symbols.
pub(super) type Sizes<'a> = &'a dyn Fn(&Symbol) -> Option<Dim>;

/// Copies `graph` into `out` with sizes for its symbols; returns what its outputs are there. Inputs that
/// `out` has by name are read, the others are added.
pub(super) fn copy_into(
    out: &mut Graph,
    graph: &Graph,
    bindings: &Bindings,
) -> Result<Vec<ValueId>, GraphError> {
    copy_with(out, graph, &|s| bindings.get(s).map(|n| Dim::from(*n)), HashMap::new())
}

/// As [`copy_into`], with expressions for symbols and values of `out` for some of the graph's.
pub(super) fn copy_with(
    out: &mut Graph,
    graph: &Graph,
    bindings: Sizes<'_>,
    mut map: HashMap<ValueId, ValueId>,
) -> Result<Vec<ValueId>, GraphError> {
    let declared = graph.inputs().iter().filter_map(|v| graph.shape(*v)).flatten();
    let mut names: HashMap<Symbol, Dim> =
        declared.flat_map(Dim::symbols).map(|s| (s.clone(), s.into())).collect();
    for v in graph.inputs().iter().filter(|v| !map.contains_key(v)).collect::<Vec<_>>() {
        let name = graph.value(*v).name.clone().unwrap_or_default();
        if let Some(there) = out.input(&name) {
            map.insert(*v, there);
        } else if let Some(ty) = graph.ty(*v).map(|t| substituted(out, t, bindings, &mut names)) {
            map.insert(*v, out.add_input(&name, ty));
        }
    }
    for id in graph.topological()? {
        let Some(node) = graph.node(id) else { continue };
        let op = match &node.op {
            Op::Dims { dims, scalar } => {
                Op::Dims { dims: dims.iter().map(|d| d.replace(bindings)).collect(), scalar: *scalar }
            }
            op => op.clone(),
        };
        let inputs = node.inputs.iter().map(|v| v.map(|v| mapped(graph, out, &mut map, v))).collect();
        let new = out.add_node(op, inputs, node.outputs.len(), &node.name)?;
        let results = out.node(new).map(|n| n.outputs.clone()).unwrap_or_default();
        for (old, new) in node.outputs.iter().zip(results) {
            map.insert(*old, new);
            out.adopt_name_from(graph, *old, new);
            if let (Some(ty), None) = (graph.ty(*old), out.ty(new)) {
                let ty = substituted(out, ty, bindings, &mut names);
                out.declare_type(new, ty);
            }
        }
    }
    Ok(graph.outputs.iter().map(|o| mapped(graph, out, &mut map, o.value)).collect())
}

/// The new value of an old one; constants move when they are first read.
fn mapped(graph: &Graph, out: &mut Graph, map: &mut HashMap<ValueId, ValueId>, v: ValueId) -> ValueId {
    *map.entry(v).or_insert_with(|| {
        let new = match &graph.value(v).def {
            Def::Constant(tensor) => out.constant(tensor.clone()),
            // Operands precede their readers, so only a value without a type or a maker comes here.
            _ => match graph.ty(v) {
                Some(ty) => out.add_input("", ty.clone()),
                None => out.scalar(0i64),
            },
        };
        out.adopt_name_from(graph, v, new);
        new
    })
}

/// The type with sizes for its symbols; the symbols of sizes that only the data decides get new names,
/// since those of the old graph may clash with the new one's. Those that inputs declare stay.
fn substituted(out: &mut Graph, ty: &Type, bindings: Sizes<'_>, names: &mut HashMap<Symbol, Dim>) -> Type {
    let shape = ty
        .shape
        .iter()
        .map(|d| {
            let d = d.replace(bindings);
            for s in d.symbols() {
                names.entry(s).or_insert_with(|| out.fresh_symbol());
            }
            d.replace(&|s| names.get(s).cloned())
        })
        .collect();
    Type::new(ty.dtype, shape)
}
