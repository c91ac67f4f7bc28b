//! Levels of independent steps, and the recycling of buffers between them.
//!
//! A step's level is one more than the highest level it reads from, or whose results it changes in place, and above
//! those that read what it writes over.
//! All steps of a level run in one compute pass; a recycled buffer changes its owner between levels only,
//! so within a level no buffer is both read and written.

use std::ops::Range;

use super::plan::{Output, OutputSource, Place, Slot, Step};

/// Sorts steps by level and returns the levels. Steps come in an order of evaluation.
pub fn level(steps: &mut Vec<Step>, slots: usize) -> Vec<Range<usize>> {
    let (mut written, mut read) = (vec![0usize; slots], vec![0usize; slots]);
    let mut tagged: Vec<(usize, Step)> = Vec::with_capacity(steps.len());
    for step in steps.drain(..) {
        let of = |levels: &[usize], slot: usize| levels.get(slot).copied().unwrap_or(0);
        let changed = if step.in_place { step.writes() } else { &[] };
        let made = step.reads().iter().chain(changed).map(|b| of(&written, b.slot));
        let level = made.chain(step.writes().iter().map(|b| of(&read, b.slot))).max().unwrap_or(0);
        for (levels, bindings) in [(&mut written, step.writes()), (&mut read, step.reads())] {
            for b in bindings {
                if let Some(at) = levels.get_mut(b.slot) {
                    *at = (*at).max(level + 1);
                }
            }
        }
        tagged.push((level, step));
    }
    tagged.sort_by_key(|(level, _)| *level);
    let mut levels: Vec<Range<usize>> = vec![];
    for (i, (level, step)) in tagged.into_iter().enumerate() {
        match levels.get_mut(level) {
            Some(range) => range.end = i + 1,
            None => levels.push(i..i + 1),
        }
        steps.push(step);
    }
    levels
}

/// Rounds a size up to its class: a power of two in four steps, at least 256 bytes.
fn size_class(bytes: u64) -> u64 {
    if bytes <= 256 {
        return 256;
    }
    let quarter = (bytes - 1).ilog2().saturating_sub(2);
    bytes.next_multiple_of(1 << quarter)
}

/// The first and the last level at which each slot is in use; of a result, that behind the last.
fn lives(
    slots: &[Slot],
    steps: &[Step],
    levels: &[Range<usize>],
    outputs: &[Output],
) -> Vec<Option<(usize, usize)>> {
    let end = levels.len();
    let mut life: Vec<Option<(usize, usize)>> = vec![None; slots.len()];
    for (n, level) in levels.iter().enumerate() {
        for binding in steps.get(level.clone()).unwrap_or_default().iter().flat_map(|s| &s.bindings) {
            if let Some(life) = life.get_mut(binding.slot) {
                let (first, _) = life.unwrap_or((n, n));
                *life = Some((first, n));
            }
        }
    }
    for output in outputs {
        if let OutputSource::Device { binding, .. } = &output.source
            && let Some(Some(life)) = life.get_mut(binding.slot)
        {
            life.1 = end;
        }
    }
    life
}

/// Bytes of the activations that are in use at the worst level.
pub fn peak(slots: &[Slot], steps: &[Step], levels: &[Range<usize>], outputs: &[Output]) -> u64 {
    let mut change = vec![0i64; levels.len() + 2];
    for (slot, life) in slots.iter().zip(lives(slots, steps, levels, outputs)) {
        if let (Place::Activation(_), Some((first, last))) = (&slot.place, life) {
            change[first] += slot.bytes as i64;
            change[last + 1] -= slot.bytes as i64;
        }
    }
    let mut now = 0;
    let totals = change.into_iter().map(|c| {
        now += c;
        now
    });
    totals.max().unwrap_or(0).unsigned_abs()
}

/// Gives each activation a buffer and returns the buffers' sizes.
pub fn allocate(slots: &mut [Slot], steps: &[Step], levels: &[Range<usize>], outputs: &[Output]) -> Vec<u64> {
    let life = lives(slots, steps, levels, outputs);
    let mut order: Vec<(usize, usize, usize)> = life
        .iter()
        .enumerate()
        .filter(|(i, _)| matches!(slots.get(*i), Some(Slot { place: Place::Activation(_), .. })))
        .filter_map(|(i, life)| life.map(|(first, last)| (first, last, i)))
        .collect();
    order.sort_by_key(|(first, _, i)| (*first, std::cmp::Reverse(slots[*i].bytes), *i));

    let mut buffers: Vec<u64> = vec![];
    let mut busy_until: Vec<usize> = vec![];
    for (first, last, i) in order {
        let need = size_class(slots[i].bytes);
        let fits = (0..buffers.len())
            .filter(|b| busy_until[*b] < first && buffers[*b] >= need && buffers[*b] / 4 <= need)
            .min_by_key(|b| buffers[*b]);
        let buffer = fits.unwrap_or_else(|| {
            buffers.push(need);
            busy_until.push(0);
            buffers.len() - 1
        });
        busy_until[buffer] = last;
        slots[i].place = Place::Activation(buffer);
    }
    buffers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_waste_at_most_a_quarter() {
        for bytes in [1, 256, 257, 1000, 1024, 1025, 5000, 65_537, 1 << 33] {
            let class = size_class(bytes);
            assert!(class >= bytes && (bytes <= 256 || class - bytes <= bytes / 4), "{bytes} -> {class}");
            assert_eq!(size_class(class), class);
        }
    }
}
