//! Heads made ready for attention: normalised, turned by a rotary embedding, written where they belong.
//!
//! Bindings: `x` of each part at 1, 2 and 3, `cos`, `sin`, `scale` of each part at 6, 7 and 8, `position`, then
//! `out` of each part at 10, 11 and 12. What is absent has no binding.

use snlp_passes::ir::{Rotary as Attributes, RotaryTable};

use super::layout::{Space, Words, broadcast, constant, count, exactly, expect, grid, touched};
use super::{KernelError, Launch, Limits, NormKind, Operand, PipelineKey, Roles, Scalar, View};

const KERNEL: &str = "heads";
/// Leading axes, before the rows.
const MAX_LEAD: usize = 4;
/// Most parts of one dispatch.
const MAX_PARTS: usize = 3;

/// A normalisation of the last axis.
#[derive(Clone, Debug)]
pub struct HeadNorm<'a> {
    /// Which one.
    pub kind: NormKind,
    /// Added to the variance or mean square.
    pub epsilon: f32,
    /// Broadcasts to `x`, f32.
    pub scale: Option<&'a Operand>,
    /// It comes before the rotary embedding.
    pub first: bool,
}

/// Rows to be made ready.
#[derive(Clone, Debug)]
pub struct HeadPart<'a> {
    /// `[lead.., T, d]`, f32.
    pub x: &'a Operand,
    /// What normalises each row.
    pub norm: Option<HeadNorm<'a>>,
    /// `cos` and `sin`, which broadcast to `[lead.., T, d/2]` or `[lead.., T, d]`, f32. All parts read them at the
    /// same bindings.
    pub tables: Option<[&'a Operand; 2]>,
    /// `[lead.., T, d]`, f32; with `append` `[lead.., S, d]`, of which other rows stay.
    pub out: &'a Operand,
    /// Rows go to `position + t`, counted from the end when negative; those outside `out` are dropped.
    pub append: bool,
}

/// One to three parts.
#[derive(Debug)]
pub struct Heads<'a> {
    /// They read and write different buffers.
    pub parts: Vec<HeadPart<'a>>,
    /// Pairing and table of the embedding.
    pub rotary: Option<Attributes>,
    /// i32, one element.
    pub position: Option<&'a Operand>,
}

/// The kernel's number for a normalisation and where it stands.
pub(super) fn norm_code(norm: Option<&HeadNorm>) -> u32 {
    norm.map_or(0, |n| match (n.kind, n.first) {
        (NormKind::Rms, true) => 1,
        (NormKind::Layer, true) => 2,
        (NormKind::Rms, false) => 3,
        (NormKind::Layer, false) => 4,
    })
}

/// The shape of a rotary table for `x`.
pub(super) fn table_shape(
    kernel: &'static str,
    x: &View,
    rotary: Option<Attributes>,
) -> Result<Vec<u32>, KernelError> {
    let mut shape = x.shape.clone();
    match (rotary, shape.last_mut()) {
        (Some(rotary), Some(d)) if d.is_multiple_of(2) => {
            if rotary.table == RotaryTable::Half {
                *d /= 2;
            }
            Ok(shape)
        }
        (None, _) => Err(KernelError::Unsupported { kernel, reason: "tables without an embedding".into() }),
        _ => Err(KernelError::Unsupported {
            kernel,
            reason: format!("x is {x:?}; its last axis must be even"),
        }),
    }
}

/// What one part adds to a launch.
struct Laid {
    words: Words,
    rows: u32,
    pairs: u32,
}

impl Heads<'_> {
    /// The dispatch.
    ///
    /// # Errors
    /// When shapes or types do not fit, or more than four leading axes remain after merging.
    pub fn launch(&self, limits: &Limits) -> Result<Launch, KernelError> {
        let unsupported = |reason: String| KernelError::Unsupported { kernel: KERNEL, reason };
        if self.parts.is_empty() || self.parts.len() > MAX_PARTS {
            return Err(unsupported(format!("{} parts; 1 to {MAX_PARTS} are supported", self.parts.len())));
        }
        if let Some(position) = self.position {
            expect(KERNEL, "the position", position, &[Scalar::I32])?;
        }
        let norms = self.parts.iter().any(|p| p.norm.is_some());
        let (entry, workgroup, lanes) = match (norms, limits.software) {
            (false, _) => ("by_pair", 64, 1),
            (true, true) => ("by_row", 32, 1),
            (true, false) => ("by_group", 128, 32),
        };
        let mut params = vec![];
        let (mut groups, mut elements, mut bytes) = (0u32, 0u64, 0u64);
        for part in &self.parts {
            let laid = self.lay(part)?;
            let units =
                if norms { u64::from(laid.rows) } else { u64::from(laid.rows) * u64::from(laid.pairs) };
            let needed = (units * lanes).div_ceil(workgroup) + u64::from(groups);
            let end = u32::try_from(needed).map_err(|_| KernelError::Limit {
                kernel: KERNEL,
                what: "number of workgroups",
                needed,
                limit: u32::MAX.into(),
            })?;
            let epsilon = part.norm.as_ref().map_or(0, |n| n.epsilon.to_bits());
            let position = self.position.map_or(0, |p| p.view.offset);
            params.extend(laid.words.array(&[epsilon, groups, end, position], 4).done());
            groups = end;
            elements += part.x.view.len();
            let scale = part.norm.as_ref().and_then(|n| n.scale);
            let read = [Some(part.x), scale].into_iter().flatten().chain(part.tables.into_iter().flatten());
            bytes += read.map(touched).sum::<u64>() + touched(part.x);
        }
        params.resize(params.len() / self.parts.len() * MAX_PARTS, 0);
        Ok(Launch {
            pipeline: PipelineKey {
                source: KERNEL,
                entry,
                types: vec![],
                constants: self.constants(workgroup as u32),
            },
            params,
            roles: self.roles(),
            grid: grid(KERNEL, groups.into(), limits)?,
            flops: 6 * elements,
            bytes,
        })
    }

    fn roles(&self) -> Roles {
        let numbered = |first: u32, present: &dyn Fn(&HeadPart) -> bool| -> Vec<u32> {
            (first..).zip(&self.parts).filter(|(_, part)| present(part)).map(|(n, _)| n).collect()
        };
        let mut reads = numbered(1, &|_| true);
        if self.parts.iter().any(|p| p.tables.is_some()) {
            reads.extend([4, 5]);
        }
        reads.extend(numbered(6, &|p| p.norm.as_ref().is_some_and(|n| n.scale.is_some())));
        reads.extend(self.position.map(|_| 9));
        Roles { reads, writes: numbered(10, &|_| true) }
    }

    fn constants(&self, workgroup: u32) -> Vec<(&'static str, u64)> {
        const NAMES: [[&str; 4]; MAX_PARTS] = [
            ["NORM0", "SCALE0", "ROTARY0", "ROWS0"],
            ["NORM1", "SCALE1", "ROTARY1", "ROWS1"],
            ["NORM2", "SCALE2", "ROTARY2", "ROWS2"],
        ];
        let mut constants = vec![("WG", workgroup), ("PARTS", self.parts.len() as u32)];
        for (part, [norm, scale, rotary, rows]) in self.parts.iter().zip(NAMES) {
            constants.push((norm, norm_code(part.norm.as_ref())));
            constants.push((scale, part.norm.as_ref().is_some_and(|n| n.scale.is_some()).into()));
            constants.push((rotary, part.tables.is_some().into()));
            constants.push((rows, part.append.into()));
        }
        if let Some(rotary) = self.rotary {
            constants.push(("INTERLEAVED", rotary.interleaved.into()));
            constants.push(("FULL_TABLE", (rotary.table == RotaryTable::Full).into()));
        }
        let told = |(name, value): &(&'static str, u32)| *value > 0 || matches!(*name, "WG" | "PARTS");
        constants.into_iter().filter(told).map(|(name, value)| constant(name, value)).collect()
    }

    /// The words of a part's sizes and strides.
    fn lay(&self, part: &HeadPart) -> Result<Laid, KernelError> {
        let scale = part.norm.as_ref().and_then(|n| n.scale);
        let operands =
            [Some(part.x), part.tables.map(|t| t[0]), part.tables.map(|t| t[1]), scale, Some(part.out)];
        for operand in operands.into_iter().flatten() {
            expect(KERNEL, "an operand", operand, &[Scalar::F32])?;
        }
        let x = &part.x.view;
        let total = count(KERNEL, &x.shape)?;
        let Some((&d, outer)) = x.shape.split_last() else {
            return Err(KernelError::Unsupported { kernel: KERNEL, reason: "x has no axis".into() });
        };
        let (t, lead) = outer.split_last().map_or((1, outer), |(t, lead)| (*t, lead));
        let mut shape = x.shape.clone();
        let held =
            if part.append { part.out.view.shape.iter().rev().nth(1).copied().unwrap_or(1) } else { t };
        if let Some(rows) = shape.len().checked_sub(2).and_then(|axis| shape.get_mut(axis)) {
            *rows = held;
        }
        if part.append && (self.position.is_none() || x.shape.len() < 2) {
            let reason = format!("rows {x:?} without a position to start from");
            return Err(KernelError::Unsupported { kernel: KERNEL, reason });
        }
        let table = |table: Option<&Operand>| match table {
            Some(table) => broadcast(KERNEL, &table.view, &table_shape(KERNEL, x, self.rotary)?),
            None => Ok(vec![0; x.shape.len()]),
        };
        let strides = [
            exactly(KERNEL, x, &x.shape)?,
            table(operands[1])?,
            table(operands[2])?,
            scale.map_or(Ok(vec![0; x.shape.len()]), |s| broadcast(KERNEL, &s.view, &x.shape))?,
            exactly(KERNEL, &part.out.view, &shape)?,
        ];
        let cut: Vec<Vec<u32>> = strides.iter().map(|s| s[..lead.len()].to_vec()).collect();
        let space = Space::merge(lead, &cut).at_most(KERNEL, MAX_LEAD)?;
        // The innermost axis last, those that are missing of size 1 before it.
        let last = |values: &[u32], fill: u32| {
            let mut four = [fill; MAX_LEAD];
            four[MAX_LEAD - values.len()..].copy_from_slice(values);
            four
        };
        let mut words = Words::new().array(&last(&space.shape, 1), 4);
        for ((lead_strides, own), operand) in space.strides.iter().zip(&strides).zip(operands) {
            let mut tail = [0, 0, operand.map_or(0, |o| o.view.offset), 0];
            tail[1] = own[own.len() - 1];
            tail[0] = if own.len() > 1 { own[own.len() - 2] } else { 0 };
            words = words.array(&last(lead_strides, 0), 4).array(&tail, 4);
        }
        let rows = total.checked_div(d).unwrap_or(0);
        Ok(Laid { words: words.array(&[t, rows, d, held], 4), rows, pairs: d.div_ceil(2) })
    }
}
