//! The module of one pipeline: only what its constants leave.
//!
//! Drivers inline every call before they fold a constant, so a switch over all operations costs its whole
//! size for each of its callers. Here the constants are put in, branches that they decide are taken, and
//! functions are copied for the constants they are called with; then what nothing reaches is dropped.
//!
//! ```text
//! if (STEPS > 0u) { r[16] = apply(OP0, ..); }          r[16] = apply_45(..);
//! if (STEPS > 1u) { r[17] = apply(OP1, ..); }    →
//! fn apply(op, ..) { switch op { .. } }                fn apply_45(..) { return x + y; }
//! ```

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};

use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{
    Arena, ArraySize, BinaryOperator, Block, Expression, Function, Handle, Literal, Module, Span, Statement,
    Type, TypeInner,
};

use super::PipelineKey;
use super::table::shader_text;
use crate::device::lock;

type Parsed = Arc<(Module, ModuleInfo)>;
type Types = Vec<(&'static str, &'static str)>;

/// The module of a pipeline: its one entry point, and the key's constants for the overrides' defaults.
///
/// # Errors
/// A message for people when the table has no such source, or the source no such entry point or constant.
pub fn specialised(key: &PipelineKey) -> Result<Module, String> {
    let parsed = parsed(key)?;
    if !parsed.0.entry_points.iter().any(|e| e.name == key.entry) {
        return Err(format!("the source has no entry point {}", key.entry));
    }
    let entry = (naga::ShaderStage::Compute, key.entry);
    let constants =
        key.constants.iter().map(|(name, bits)| ((*name).into(), f64::from_bits(*bits))).collect();
    let (module, _) =
        naga::back::pipeline_constants::process_overrides(&parsed.0, &parsed.1, Some(entry), &constants)
            .map_err(|e| e.to_string())?;
    let mut module = module.into_owned();
    settle_sizes(&mut module);
    prune(&mut module);
    Ok(module)
}

/// Puts numbers for the sizes of arrays that overrides give, so that no override is left: drivers' front ends would
/// process the module anew for one.
fn settle_sizes(module: &mut Module) {
    for (_, variable) in module.global_variables.iter_mut() {
        let TypeInner::Array { base, size: ArraySize::Pending(size), stride } =
            module.types[variable.ty].inner
        else {
            continue;
        };
        let init = module.overrides[size].init.map(|init| &module.global_expressions[init]);
        if let Some(Expression::Literal(Literal::U32(n))) = init
            && let Some(n) = NonZeroU32::new(*n)
        {
            let inner = TypeInner::Array { base, size: ArraySize::Constant(n), stride };
            variable.ty = module.types.insert(Type { name: None, inner }, Span::UNDEFINED);
        }
    }
}

/// The parsed source of a key. A source serves many pipelines.
fn parsed(key: &PipelineKey) -> Result<Parsed, String> {
    static PARSED: Mutex<Option<HashMap<(&'static str, Types), Parsed>>> = Mutex::new(None);
    let of = (key.source, key.types.clone());
    if let Some(found) = lock(&PARSED).as_ref().and_then(|all| all.get(&of)) {
        return Ok(found.clone());
    }
    let text = shader_text(key).ok_or("the kernel table has no such source or type substitution")?;
    let module = naga::front::wgsl::parse_str(&text).map_err(|e| e.emit_to_string(&text))?;
    // What the device supports is checked when it makes the pipeline.
    let info = Validator::new(ValidationFlags::all(), Capabilities::all())
        .validate(&module)
        .map_err(|e| e.emit_to_string(&text))?;
    let parsed = Arc::new((module, info));
    lock(&PARSED).get_or_insert_default().insert(of, parsed.clone());
    Ok(parsed)
}

/// Takes the branches that constants decide, and drops what is then unreachable.
fn prune(module: &mut Module) {
    let mut entries = std::mem::take(&mut module.entry_points);
    let mut pruner = Pruner { module, functions: Arena::new(), copies: HashMap::new() };
    for entry in &mut entries {
        pruner.function(&mut entry.function);
    }
    module.functions = pruner.functions;
    module.entry_points = entries;
    naga::compact::compact(module, naga::compact::KeepUnused::No);
}

/// A value known before the program runs.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Known {
    Bool(bool),
    U32(u32),
    I32(i32),
}

impl Known {
    fn of(literal: Literal) -> Option<Known> {
        match literal {
            Literal::Bool(x) => Some(Known::Bool(x)),
            Literal::U32(x) => Some(Known::U32(x)),
            Literal::I32(x) => Some(Known::I32(x)),
            _ => None,
        }
    }

    fn literal(self) -> Literal {
        match self {
            Known::Bool(x) => Literal::Bool(x),
            Known::U32(x) => Literal::U32(x),
            Known::I32(x) => Literal::I32(x),
        }
    }
}

/// The value of `left op right`, of those that conditions are made of.
fn compute(op: BinaryOperator, left: Known, right: Known) -> Option<Known> {
    use BinaryOperator as B;
    let order = match (left, right) {
        (Known::Bool(a), Known::Bool(b)) => match op {
            B::LogicalAnd | B::And => return Some(Known::Bool(a && b)),
            B::LogicalOr | B::InclusiveOr => return Some(Known::Bool(a || b)),
            _ => a.cmp(&b),
        },
        (Known::U32(a), Known::U32(b)) => match op {
            B::Add => return a.checked_add(b).map(Known::U32),
            B::Multiply => return a.checked_mul(b).map(Known::U32),
            B::ShiftRight => return a.checked_shr(b).map(Known::U32),
            B::And => return Some(Known::U32(a & b)),
            _ => a.cmp(&b),
        },
        (Known::I32(a), Known::I32(b)) => a.cmp(&b),
        _ => return None,
    };
    Some(Known::Bool(match op {
        B::Equal => order.is_eq(),
        B::NotEqual => order.is_ne(),
        B::Less => order.is_lt(),
        B::LessEqual => order.is_le(),
        B::Greater => order.is_gt(),
        B::GreaterEqual => order.is_ge(),
        _ => return None,
    }))
}

/// A function and what is known of its arguments.
type Call = (Handle<Function>, Vec<Option<Known>>);

struct Pruner<'m> {
    /// The module, whose functions are left as they are.
    module: &'m Module,
    /// The pruned functions; callees come first, as naga demands.
    functions: Arena<Function>,
    copies: HashMap<Call, Handle<Function>>,
}

impl Pruner<'_> {
    fn callee(&mut self, call: Call) -> Handle<Function> {
        if let Some(copy) = self.copies.get(&call) {
            return *copy;
        }
        let mut function = self.module.functions[call.0].clone();
        for (_, expression) in function.expressions.iter_mut() {
            if let Expression::FunctionArgument(n) = *expression
                && let Some(known) = call.1.get(n as usize).copied().flatten()
            {
                *expression = Expression::Literal(known.literal());
            }
        }
        self.function(&mut function);
        let copy = self.functions.append(function, self.module.functions.get_span(call.0));
        self.copies.insert(call, copy);
        copy
    }

    fn function(&mut self, function: &mut Function) {
        // Names would keep what they name, such as results of calls that are gone.
        function.named_expressions.clear();
        let body = std::mem::take(&mut function.body);
        function.body = self.block(body, &mut function.expressions);
    }

    fn block(&mut self, block: Block, expressions: &mut Arena<Expression>) -> Block {
        let mut kept = Block::with_capacity(block.len());
        for (statement, span) in block.span_into_iter() {
            match self.statement(statement, expressions) {
                Pruned::One(statement) => kept.push(statement, span),
                Pruned::All(block) => kept.extend_block(block),
            }
            // Nothing may follow these, and a branch taken can end in one.
            if let Some(Statement::Return { .. } | Statement::Break | Statement::Continue | Statement::Kill) =
                kept.last()
            {
                break;
            }
        }
        kept
    }

    fn statement(&mut self, statement: Statement, expressions: &mut Arena<Expression>) -> Pruned {
        Pruned::One(match statement {
            Statement::Block(block) => Statement::Block(self.block(block, expressions)),
            Statement::If { condition, accept, reject } => match self.known(condition, expressions) {
                Some(known) => {
                    let taken = if known == Known::Bool(true) { accept } else { reject };
                    return Pruned::All(self.block(taken, expressions));
                }
                None => Statement::If {
                    condition,
                    accept: self.block(accept, expressions),
                    reject: self.block(reject, expressions),
                },
            },
            Statement::Switch { selector, mut cases } => {
                if let Some(at) = self.case(selector, &cases, expressions) {
                    let mut case = cases.swap_remove(at);
                    if !breaks(&case.body) {
                        return Pruned::All(self.block(case.body, expressions));
                    }
                    case.value = naga::SwitchValue::Default;
                    cases = vec![case];
                }
                for case in &mut cases {
                    case.body = self.block(std::mem::take(&mut case.body), expressions);
                }
                Statement::Switch { selector, cases }
            }
            Statement::Loop { body, continuing, break_if } => Statement::Loop {
                body: self.block(body, expressions),
                continuing: self.block(continuing, expressions),
                break_if,
            },
            Statement::Call { function, arguments, result } => {
                let known = arguments.iter().map(|a| self.known(*a, expressions)).collect();
                let function = self.callee((function, known));
                if let Some(result) = result {
                    expressions[result] = Expression::CallResult(function);
                }
                Statement::Call { function, arguments, result }
            }
            other => other,
        })
    }

    /// Which case a switch takes, where that is known.
    fn case(
        &self,
        selector: Handle<Expression>,
        cases: &[naga::SwitchCase],
        expressions: &Arena<Expression>,
    ) -> Option<usize> {
        let value = match self.known(selector, expressions)? {
            Known::U32(x) => naga::SwitchValue::U32(x),
            Known::I32(x) => naga::SwitchValue::I32(x),
            Known::Bool(_) => return None,
        };
        if cases.iter().any(|c| c.fall_through) {
            return None;
        }
        let of = |value| cases.iter().position(|c| c.value == value);
        of(value).or_else(|| of(naga::SwitchValue::Default))
    }

    fn known(&self, expression: Handle<Expression>, expressions: &Arena<Expression>) -> Option<Known> {
        match expressions[expression] {
            Expression::Literal(literal) => Known::of(literal),
            Expression::Constant(c) => match self.module.global_expressions[self.module.constants[c].init] {
                Expression::Literal(literal) => Known::of(literal),
                _ => None,
            },
            Expression::Binary { op, left, right } => {
                compute(op, self.known(left, expressions)?, self.known(right, expressions)?)
            }
            Expression::Unary { op: naga::UnaryOperator::LogicalNot, expr } => {
                match self.known(expr, expressions)? {
                    Known::Bool(x) => Some(Known::Bool(!x)),
                    _ => None,
                }
            }
            Expression::Select { condition, accept, reject } => {
                let taken = self.known(condition, expressions)? == Known::Bool(true);
                self.known(if taken { accept } else { reject }, expressions)
            }
            _ => None,
        }
    }
}

/// What becomes of a statement.
enum Pruned {
    One(Statement),
    /// The statements of the branch taken.
    All(Block),
}

/// Whether a block leaves the switch or loop that it is the body of.
fn breaks(block: &Block) -> bool {
    block.iter().any(|statement| match statement {
        Statement::Break => true,
        Statement::Block(block) => breaks(block),
        Statement::If { accept, reject, .. } => breaks(accept) || breaks(reject),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{self, validator};
    use crate::kernels::{Elementwise, Operand, Program, Reg, SOURCES, Scalar, View};

    fn validate(module: &Module) -> ModuleInfo {
        let mut validator = Validator::new(ValidationFlags::all(), Capabilities::all());
        validator.validate(module).unwrap_or_else(|e| panic!("{e:?}"))
    }

    fn pruned(text: &str) -> Module {
        let mut module = naga::front::wgsl::parse_str(text).unwrap();
        validate(&module);
        prune(&mut module);
        validate(&module);
        module
    }

    fn names(module: &Module) -> Vec<&str> {
        module.functions.iter().filter_map(|(_, f)| f.name.as_deref()).collect()
    }

    /// Statements that branch, in all functions.
    fn branches(module: &Module) -> usize {
        fn of(block: &Block) -> usize {
            let inside = |s: &Statement| match s {
                Statement::Block(b) => of(b),
                Statement::If { accept, reject, .. } => 1 + of(accept) + of(reject),
                Statement::Switch { cases, .. } => 1 + cases.iter().map(|c| of(&c.body)).sum::<usize>(),
                Statement::Loop { body, continuing, .. } => of(body) + of(continuing),
                _ => 0,
            };
            block.iter().map(inside).sum()
        }
        let functions = module.functions.iter().map(|(_, f)| of(&f.body));
        functions.chain(module.entry_points.iter().map(|e| of(&e.function.body))).sum()
    }

    #[test]
    fn every_entry_point_of_every_variant_is_valid_when_specialised() {
        let mut seen = 0;
        for source in SOURCES {
            for types in std::iter::once(&[][..]).chain(source.variants.iter().copied()) {
                let mut key =
                    PipelineKey { source: source.name, entry: "", types: types.to_vec(), constants: vec![] };
                let parsed = parsed(&key).unwrap();
                for entry in &parsed.0.entry_points {
                    key.entry = String::leak(entry.name.clone());
                    // With all switches off, and with each one on.
                    let switches = parsed.0.overrides.iter().filter_map(|(_, o)| {
                        let bool = parsed.0.types[o.ty].inner == naga::TypeInner::Scalar(naga::Scalar::BOOL);
                        let name: &'static str = String::leak(o.name.clone().filter(|_| bool)?);
                        Some(vec![(name, 1f64.to_bits())])
                    });
                    for constants in std::iter::once(vec![]).chain(switches) {
                        let module = specialised(&PipelineKey { constants, ..key.clone() }).unwrap();
                        // What adapters without subgroups or cooperative matrices compile has nothing of them left.
                        validator(&entry.name)
                            .validate(&module)
                            .unwrap_or_else(|e| panic!("{} {}: {e:?}", source.name, entry.name));
                        assert!(module.entry_points[0].workgroup_size_overrides.is_none());
                        assert!(module.overrides.is_empty(), "{} {}", source.name, entry.name);
                        assert_eq!(module.entry_points.len(), 1);
                        seen += 1;
                    }
                }
            }
        }
        assert!(seen > SOURCES.len());
    }

    #[test]
    fn a_short_program_keeps_its_own_operations_only() {
        let x = Operand { view: View::dense(&[1 << 16]), scalar: Scalar::F32 };
        let mut program = Program::new(2);
        program.results = vec![
            program.binary(snlp_passes::ir::Binary::Mul, Reg::Input(0), Reg::Input(1), Scalar::F32).unwrap(),
        ];
        let spec = Elementwise { program: &program, inputs: &[&x, &x], indices: &[], outputs: &[&x] };
        let module = specialised(&spec.launch(&testing::hardware()).unwrap().pipeline).unwrap();
        validate(&module);
        let names = names(&module);
        assert_eq!(names.iter().filter(|n| **n == "apply").count(), 1);
        for gone in ["pow_", "exp_", "half", "int_op"] {
            assert!(!names.contains(&gone), "{gone} in {names:?}");
        }
    }

    #[test]
    fn one_copy_of_a_function_for_each_set_of_known_arguments() {
        let module = pruned(
            "@group(0) @binding(0) var<storage, read_write> out: array<u32>;
            fn one(op: u32, x: u32) -> u32 { switch op { case 1u: { return x; } default: { return x + 1u; } } }
            fn two(op: u32, x: u32) -> u32 { if (op > 1u || x == 7u) { return one(op, x); } return 0u; }
            @compute @workgroup_size(1) fn main() {
                out[0] = two(1u, out[1]); out[2] = two(1u, out[3]); out[4] = two(2u, out[5]);
                out[6] = two(out[7], out[8]);
            }",
        );
        let copies = |name| names(&module).iter().filter(|n| **n == name).count();
        assert_eq!(copies("two"), 3);
        assert_eq!(copies("one"), 3);
    }

    #[test]
    fn branches_that_nothing_decides_stay() {
        let kept = pruned(
            "@group(0) @binding(0) var<storage, read_write> out: array<i32>;
            @compute @workgroup_size(1) fn main() {
                if (out[0] == 1) { out[1] = 2; } else { return; }
                switch out[2] { case 1: { out[3] = 1; } default: { out[3] = 2; } }
            }",
        );
        assert_eq!(branches(&kept), 2);
    }

    #[test]
    fn a_case_taken_that_breaks_stays_in_its_switch() {
        let text = |selector| {
            format!(
                "@group(0) @binding(0) var<storage, read_write> out: array<i32>;
                const PICK = {selector};
                @compute @workgroup_size(1) fn main() {{
                    switch PICK {{
                        case 1: {{ if (out[0] == 1) {{ break; }} out[1] = 2; }}
                        case 2: {{ out[1] = 3; }}
                        default: {{ loop {{ break; }} }}
                    }}
                    out[2] = 4;
                }}"
            )
        };
        // The switch and the branch in it; nothing; and a loop, whose break is its own.
        assert_eq!([1, 2, 3].map(|selector| branches(&pruned(&text(selector)))), [2, 0, 0]);
    }

    #[test]
    fn code_behind_a_branch_taken_that_returns_goes() {
        let module = pruned(
            "@group(0) @binding(0) var<storage, read_write> out: array<i32>;
            fn far(x: i32) -> i32 { return x * 3; }
            fn near(stop: bool) -> i32 { if (stop) { return 1; } return far(out[1]); }
            @compute @workgroup_size(1) fn main() { out[0] = near(true); }",
        );
        assert_eq!(names(&module), ["near"]);
    }

    #[test]
    fn says_what_is_missing() {
        let key = |source, entry, constants| PipelineKey { source, entry, types: vec![], constants };
        assert!(specialised(&key("nothing", "main", vec![])).unwrap_err().contains("no such source"));
        assert!(specialised(&key("softmax", "nothing", vec![])).unwrap_err().contains("no entry point"));
        let constants = vec![("NOTHING", 0)];
        assert!(specialised(&key("elementwise", "in1_out1", constants)).unwrap_err().contains("NOTHING"));
    }
}
