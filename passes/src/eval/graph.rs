//! Evaluation of whole graphs.

use std::collections::BTreeMap;

use super::{EvalError, Result, bad, eval_op};
use crate::ir::{Atom, Bindings, Def, Dim, Graph, Node, NodeId, Op, Symbol, Tensor, Type, ValueId};

/// Sizes for the symbols of the graph's inputs, from the shapes that the inputs have. A size that does
/// not fit its declaration, or a symbol with two sizes, is an error.
pub fn bind_symbols(graph: &Graph, shapes: &BTreeMap<ValueId, &[usize]>) -> Result<Bindings> {
    let mut bindings = Bindings::new();
    let mut waiting = Vec::new();
    for (v, shape) in shapes {
        let Some(ty) = graph.ty(*v) else { continue };
        let name = name_of(graph, *v);
        if ty.rank() != shape.len() {
            return Err(bad(format!("input '{name}' is {ty} but has shape {shape:?}")));
        }
        waiting.extend(ty.shape.iter().zip(*shape).map(|(d, n)| (name.clone(), ty, d, *n as i64)));
    }
    // Plain symbols first; an expression may then have but one symbol left, perhaps after another one.
    waiting.sort_by_key(|(_, _, d, _)| d.as_symbol().is_none());
    loop {
        let before = bindings.len();
        for (name, ty, d, n) in &waiting {
            match_dim(d, *n, &mut bindings).map_err(|why| bad(format!("input '{name}' ({ty}): {why}")))?;
        }
        if bindings.len() == before {
            return Ok(bindings);
        }
    }
}

/// Evaluates a graph: `inputs` by value id of the graph's inputs; symbols take their sizes from the
/// inputs' shapes. Returns the outputs in order. An input that does not fit its declared type is an
/// error. If some operators have no evaluation, the error names them all.
pub fn eval_graph(graph: &Graph, inputs: &BTreeMap<ValueId, Tensor>) -> Result<Vec<Tensor>> {
    let needed = needed(graph);
    let order: Vec<NodeId> = graph
        .topological()
        .map_err(|e| bad(e.to_string()))?
        .into_iter()
        .filter(|id| graph.node(*id).is_some_and(|n| n.outputs.iter().any(|v| needed[v.index()])))
        .collect();
    refuse_opaque(graph, &order)?;
    check_inputs(graph, inputs, &needed)?;
    let shapes = inputs.iter().map(|(v, t)| (*v, t.shape())).collect();
    let mut run = Run {
        graph,
        bindings: bind_symbols(graph, &shapes)?,
        values: vec![None; graph.value_count()],
        uses: uses(graph, &order),
    };
    for (v, t) in inputs {
        run.values[v.index()] = Some(t.clone());
    }
    // Sizes that only the data decides are known once the operator that finds them has run; what
    // needs them waits for another round.
    let mut waiting = order;
    while !waiting.is_empty() {
        let before = waiting.len();
        let mut left = Vec::new();
        for id in waiting {
            if !run.step(id)? {
                left.push(id);
            }
        }
        if left.len() == before {
            return Err(run.stuck(&left));
        }
        waiting = left;
    }
    let output = |o: &crate::ir::Output| {
        run.value(o.value).cloned().ok_or_else(|| bad(format!("output '{}' was not computed", o.name)))
    };
    graph.outputs.iter().map(output).collect()
}

/// A graph being evaluated.
struct Run<'g> {
    graph: &'g Graph,
    bindings: Bindings,
    values: Vec<Option<Tensor>>,
    /// Reads of each value that are still to come.
    uses: Vec<usize>,
}

impl Run<'_> {
    fn value(&self, v: ValueId) -> Option<&Tensor> {
        match &self.graph.value(v).def {
            Def::Constant(t) => Some(t),
            _ => self.values.get(v.index()).and_then(Option::as_ref),
        }
    }

    /// Evaluates one node; false when something it needs is not known yet.
    fn step(&mut self, id: NodeId) -> Result<bool> {
        let Some(node) = self.graph.node(id) else { return Ok(true) };
        let mut op = std::borrow::Cow::Borrowed(&node.op);
        if let Op::Dims { dims, scalar } = &node.op {
            let dims: Vec<Dim> = dims.iter().map(|d| d.substitute(&self.bindings)).collect();
            if dims.iter().any(|d| d.known().is_none()) {
                return Ok(false);
            }
            op = std::borrow::Cow::Owned(Op::Dims { dims, scalar: *scalar });
        }
        if node.operands().any(|v| self.value(v).is_none()) {
            return Ok(false);
        }
        let operands: Vec<Option<&Tensor>> =
            node.inputs.iter().map(|v| v.and_then(|v| self.value(v))).collect();
        let within = |source| EvalError::Node {
            node: node.name.clone(),
            op: node.op.name(),
            source: Box::new(source),
        };
        let results = eval_op(&op, &operands).map_err(within)?;
        if results.len() < node.outputs.len() {
            let (has, wants) = (results.len(), node.outputs.len());
            return Err(within(bad(format!("{has} results for {wants} outputs"))));
        }
        for (v, result) in node.outputs.iter().zip(results) {
            if let Some(ty) = self.graph.ty(*v) {
                match_type(ty, &result, &mut self.bindings).map_err(within)?;
            }
            if self.uses[v.index()] > 0 {
                self.values[v.index()] = Some(result);
            }
        }
        for v in node.operands() {
            self.uses[v.index()] -= 1;
            if self.uses[v.index()] == 0 {
                self.values[v.index()] = None;
            }
        }
        Ok(true)
    }

    /// The error when no node can be evaluated: sizes that nothing decides.
    fn stuck(&self, left: &[NodeId]) -> EvalError {
        let unbound = |n: &Node| match &n.op {
            Op::Dims { dims, .. } => dims.iter().flat_map(Dim::symbols).collect::<Vec<Symbol>>(),
            _ => vec![],
        };
        let mut names: Vec<String> = left
            .iter()
            .filter_map(|id| self.graph.node(*id))
            .flat_map(unbound)
            .filter(|s| !self.bindings.contains_key(s))
            .map(|s| s.name().to_string())
            .collect();
        names.sort();
        names.dedup();
        bad(format!("no input decides the sizes {}", names.join(", ")))
    }
}

/// Which values the outputs depend on.
fn needed(graph: &Graph) -> Vec<bool> {
    let mut needed = vec![false; graph.value_count()];
    let mut stack: Vec<ValueId> = graph.outputs.iter().map(|o| o.value).collect();
    while let Some(v) = stack.pop() {
        if !std::mem::replace(&mut needed[v.index()], true)
            && let Some(node) = graph.producing(v)
        {
            stack.extend(node.operands());
        }
    }
    needed
}

/// How often each value is read, outputs included.
fn uses(graph: &Graph, order: &[NodeId]) -> Vec<usize> {
    let mut uses = vec![0; graph.value_count()];
    let operands = order.iter().filter_map(|id| graph.node(*id)).flat_map(Node::operands);
    for v in operands.chain(graph.outputs.iter().map(|o| o.value)) {
        uses[v.index()] += 1;
    }
    uses
}

/// Names every operator that cannot be evaluated.
fn refuse_opaque(graph: &Graph, order: &[NodeId]) -> Result<()> {
    let mut unknown: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for node in order.iter().filter_map(|id| graph.node(*id)) {
        if matches!(node.op, Op::Opaque(_)) {
            unknown.entry(node.op.name()).or_default().push(&node.name);
        }
    }
    if unknown.is_empty() {
        return Ok(());
    }
    let list = |(op, nodes): (String, Vec<&str>)| {
        let named: Vec<String> = nodes.iter().take(3).map(|n| format!("'{n}'")).collect();
        let more = if nodes.len() > 3 { format!(" and {} more", nodes.len() - 3) } else { String::new() };
        format!("{op} (node {}{more})", named.join(", "))
    };
    Err(EvalError::Unsupported(unknown.into_iter().map(list).collect::<Vec<_>>().join(", ")))
}

fn name_of(graph: &Graph, v: ValueId) -> String {
    graph.value(v).name.clone().unwrap_or_else(|| format!("{v:?}"))
}

/// Checks that all inputs that matter are there, that nothing else is, and their dtypes.
fn check_inputs(graph: &Graph, inputs: &BTreeMap<ValueId, Tensor>, needed: &[bool]) -> Result<()> {
    let missing = graph.inputs().iter().filter(|v| needed[v.index()] && !inputs.contains_key(v));
    let missing: Vec<String> = missing.map(|v| format!("'{}'", name_of(graph, *v))).collect();
    if !missing.is_empty() {
        return Err(bad(format!("no value for input {}", missing.join(", "))));
    }
    for (v, t) in inputs {
        if !graph.inputs().contains(v) {
            return Err(bad(format!("{v:?} is not an input of the graph")));
        }
        if let Some(ty) = graph.ty(*v).filter(|ty| ty.dtype != t.dtype()) {
            return Err(bad(format!("input '{}' is {ty} but was given {}", name_of(graph, *v), t.dtype())));
        }
    }
    Ok(())
}

/// Checks a result against its inferred type, which may decide the sizes of symbols.
fn match_type(ty: &Type, result: &Tensor, bindings: &mut Bindings) -> Result<()> {
    let found =
        || bad(format!("the result is {}{:?} but was inferred as {ty}", result.dtype(), result.shape()));
    if ty.dtype != result.dtype() || ty.rank() != result.shape().len() {
        return Err(found());
    }
    for (d, n) in ty.shape.iter().zip(result.shape()) {
        match_dim(d, *n as i64, bindings).map_err(|why| bad(format!("{}: {why}", found())))?;
    }
    Ok(())
}

/// Checks `dim` against the size `n`, which binds its symbol if only one is unbound and `dim` is linear
/// in it. An expression with more unknowns is let pass.
fn match_dim(dim: &Dim, n: i64, bindings: &mut Bindings) -> std::result::Result<(), String> {
    let rest = dim.substitute(bindings) - Dim::from(n);
    match rest.known() {
        Some(0) => return Ok(()),
        Some(_) => return Err(format!("size {n} where {dim} is {}", dim.substitute(bindings))),
        None => {}
    }
    let (mut constant, mut linear) = (0, None);
    for (c, atoms) in rest.monomials() {
        match (&atoms[..], &linear) {
            ([], _) => constant = c,
            ([Atom::Symbol(s)], None) => linear = Some((s.clone(), c)),
            _ => return Ok(()),
        }
    }
    if let Some((symbol, c)) = linear {
        let exact = constant.checked_rem(c) == Some(0);
        let size = constant.checked_neg().and_then(|x| x.checked_div(c)).filter(|size| exact && *size >= 0);
        let size = size.ok_or_else(|| format!("no size of {symbol} makes {dim} equal to {n}"))?;
        bindings.insert(symbol, size);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Binary, DType, Opaque};

    fn ty(dtype: DType, dims: &[&str]) -> Type {
        let dim = |d: &&str| d.parse::<i64>().map_or_else(|_| Dim::symbol(d), Dim::from);
        Type::new(dtype, dims.iter().map(dim).collect())
    }

    fn run(graph: &Graph, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        eval_graph(graph, &graph.inputs().iter().copied().zip(inputs.iter().cloned()).collect())
    }

    fn zeros(shape: &[usize]) -> Tensor {
        Tensor::from_vec(shape.to_vec(), vec![0f32; shape.iter().product()]).unwrap()
    }

    #[test]
    fn symbols_take_their_sizes_from_inputs() {
        let mut g = Graph::new("g");
        let x = g.add_input("x", ty(DType::F32, &["b", "t"]));
        let y = g.add_input("y", ty(DType::F32, &["t"]));
        let sum = g.add(Op::Binary(Binary::Add), &[x, y]).unwrap();
        let size = g.dims(&[Dim::symbol("b") * Dim::symbol("t")]).unwrap();
        g.add_output("sum", sum);
        g.add_output("size", size);
        let results = run(&g, &[zeros(&[2, 3]), zeros(&[3])]).unwrap();
        assert_eq!(results[0].shape(), [2, 3]);
        assert_eq!(results[1], Tensor::ints(&[6]));

        let error = |inputs: &[Tensor]| run(&g, inputs).unwrap_err().to_string();
        assert!(error(&[zeros(&[2, 3]), zeros(&[4])]).contains("'y' (f32[t]): size 4 where t is 3"));
        assert!(error(&[zeros(&[2]), zeros(&[2])]).contains("'x' is f32[b, t] but has shape [2]"));
        assert!(error(&[zeros(&[2, 3])]).contains("no value for input 'y'"));
        assert!(error(&[Tensor::ints(&[1]), zeros(&[3])]).contains("but was given i64"));
    }

    #[test]
    fn expressions_bind_their_last_symbol() {
        let mut g = Graph::new("g");
        let past = g.add_input("past", ty(DType::F32, &["p"]));
        let total = Dim::symbol("p") + Dim::symbol("s");
        let mask = g.add_input("mask", Type::new(DType::F32, vec![total]));
        let s = g.dims(&[Dim::symbol("s")]).unwrap();
        g.add_output("s", s);
        let given = |p: usize, m: usize| BTreeMap::from([(past, zeros(&[p])), (mask, zeros(&[m]))]);
        assert_eq!(eval_graph(&g, &given(0, 4)).map(|r| r[0].clone()), Ok(Tensor::ints(&[4])));
        assert!(eval_graph(&g, &given(3, 2)).unwrap_err().to_string().contains("no size of s"));
    }

    #[test]
    fn sizes_that_the_data_decides_are_waited_for() {
        let mut g = Graph::new("g");
        let x = g.add_input("x", ty(DType::F32, &["n"]));
        let found = g.add(Op::NonZero, &[x]).unwrap();
        let n = g.shape(found).unwrap()[1].clone();
        // Made by a source whose size stands in no input.
        let size = g.dims(&[n]).unwrap();
        g.add_output("size", size);
        g.add_output("found", found);
        let x = Tensor::from_vec(vec![4], vec![0f32, 2.0, 0.0, f32::NAN]).unwrap();
        let results = run(&g, &[x]).unwrap();
        assert_eq!(results[0], Tensor::ints(&[2]));
        assert_eq!(results[1].to_i64().unwrap(), [1, 3]);
    }

    #[test]
    fn unknown_operators_are_all_named() {
        let mut g = Graph::new("g");
        let x = g.add_input("x", ty(DType::F32, &["n"]));
        let opaque = |name: &str| {
            let (domain, op_type) = ("com.example".into(), name.into());
            Op::Opaque(Box::new(Opaque { domain, op_type, attributes: vec![], captures: vec![] }))
        };
        let a = g.add_named("first", opaque("A"), &[x]).unwrap();
        let b = g.add_named("second", opaque("B"), &[a]).unwrap();
        g.add_output("y", b);
        // What no output needs does not count.
        g.add_named("unused", opaque("C"), &[x]).unwrap();
        let error = run(&g, &[zeros(&[1])]).unwrap_err().to_string();
        assert_eq!(error, "cannot evaluate com.example::A (node 'first'), com.example::B (node 'second')");
    }

    #[test]
    fn failures_name_the_node() {
        let mut g = Graph::new("g");
        let x = g.add_input("x", ty(DType::F32, &["n"]));
        let i = g.add_input("i", ty(DType::I64, &["m"]));
        let y = g.add_named("lookup", Op::Gather { axis: 0 }, &[x, i]).unwrap();
        g.add_output("y", y);
        let error = run(&g, &[zeros(&[3]), Tensor::ints(&[3])]).unwrap_err();
        assert_eq!(error.to_string(), "node 'lookup' (Gather): index 3 is outside axis 0 of size 3");
    }
}
