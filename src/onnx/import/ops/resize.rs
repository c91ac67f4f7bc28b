//! Resize between known sizes: along each axis a constant linear map of the elements.
//!
//! ```text
//!   Resize(x [.., n], m, mode)   becomes   x · W    W [n, m]: row weights of interpolation
//!                                    or    Gather(x, [m])    when the nearest element is taken
//! ```

use snlp_passes::ir::{DType, Dim, Op, Tensor, ValueId};

use super::{Built, Decline, NodeContext};

/// How elements are interpolated.
#[derive(Clone, Copy)]
enum Mode {
    Nearest(Nearest),
    Linear,
    Cubic { a: f64, exclude_outside: bool },
}

/// Which element is the nearest one.
#[derive(Clone, Copy)]
enum Nearest {
    Floor,
    Ceil,
    /// Halves go down.
    PreferFloor,
    /// Halves go up.
    PreferCeil,
}

/// Where an element of the result lies in the operand.
#[derive(Clone, Copy)]
enum Coordinates {
    HalfPixel,
    HalfPixelSymmetric,
    PytorchHalfPixel,
    AlignCorners,
    Asymmetric,
}

/// One axis: `from` elements become `to`, `scale` times as many.
#[derive(Clone, Copy)]
struct Axis {
    from: usize,
    to: usize,
    scale: f64,
}

pub(super) fn resize(c: &mut NodeContext<'_>) -> Built {
    let (mode, coordinates) = form(c)?;
    let x = c.input(0)?;
    let shape = c.shape(x)?;
    let axes = match c.attributes.ints("axes")? {
        Some(axes) => axes.iter().map(|a| c.axis(*a, shape.len())).collect::<Result<Vec<_>, _>>()?,
        None => (0..shape.len()).collect(),
    };
    let resized = targets(c, &axes, &shape)?;
    let mut y = x;
    for (axis, size) in resized {
        y = match mode {
            Mode::Nearest(nearest) => {
                let rows: Vec<i64> =
                    (0..size.to).map(|i| rounded(coordinates.of(size, i), nearest, size.from)).collect();
                let rows = c.graph.ints(&rows);
                c.add(Op::Gather { axis }, &[y, rows])?
            }
            mode => mapped(c, y, axis, &weights(mode, coordinates, size), size)?,
        };
    }
    if y == x {
        y = c.add(Op::Identity, &[x])?;
    }
    Ok(vec![y])
}

fn form(c: &NodeContext<'_>) -> Result<(Mode, Coordinates), Decline> {
    if c.flag("antialias", false)? || c.text("keep_aspect_ratio_policy", "stretch")? != "stretch" {
        return Err(Decline::Opaque);
    }
    let nearest = match &*c.text("nearest_mode", "round_prefer_floor")? {
        "floor" => Nearest::Floor,
        "ceil" => Nearest::Ceil,
        "round_prefer_floor" => Nearest::PreferFloor,
        "round_prefer_ceil" => Nearest::PreferCeil,
        _ => return Err(Decline::Opaque),
    };
    let mode = match &*c.text("mode", "nearest")? {
        "nearest" => Mode::Nearest(nearest),
        // With the border's weights taken away linear interpolation is another function.
        "linear" if !c.flag("exclude_outside", false)? => Mode::Linear,
        "cubic" => Mode::Cubic {
            a: f64::from(c.float("cubic_coeff_a", -0.75)?),
            exclude_outside: c.flag("exclude_outside", false)?,
        },
        _ => return Err(Decline::Opaque),
    };
    let coordinates = match &*c.text("coordinate_transformation_mode", "half_pixel")? {
        "half_pixel" => Coordinates::HalfPixel,
        "half_pixel_symmetric" => Coordinates::HalfPixelSymmetric,
        "pytorch_half_pixel" => Coordinates::PytorchHalfPixel,
        "align_corners" => Coordinates::AlignCorners,
        "asymmetric" => Coordinates::Asymmetric,
        _ => return Err(Decline::Opaque),
    };
    Ok((mode, coordinates))
}

/// The axes that change, with their sizes; declines where these are not known.
fn targets(c: &NodeContext<'_>, axes: &[usize], shape: &[Dim]) -> Result<Vec<(usize, Axis)>, Decline> {
    let at = |i: usize| c.optional(i).filter(|v| c.graph.shape(*v) != Some(&[Dim::ZERO][..]));
    // Before opset 11 the scales were the second operand.
    let (scales, sizes) = if c.opset < 11 { (at(1), None) } else { (at(2), at(3)) };
    let mut found = Vec::new();
    if let Some(sizes) = sizes {
        let sizes = c.content(sizes).filter(|s| s.len() == axes.len()).ok_or(Decline::Opaque)?;
        for (axis, to) in axes.iter().zip(sizes) {
            if shape[*axis] == to {
                continue;
            }
            let (from, to) = (shape[*axis].known_size(), to.known_size());
            let (from, to) = (from.ok_or(Decline::Opaque)?, to.ok_or(Decline::Opaque)?);
            found.push((*axis, Axis { from, to, scale: to as f64 / from as f64 }));
        }
        return Ok(found);
    }
    let scales =
        scales.and_then(|v| super::super::context::constant_of(c.graph, v)).ok_or(Decline::Opaque)?;
    let scales = scales.to_f64();
    if scales.len() != axes.len() {
        return Err(Decline::Opaque);
    }
    for (axis, scale) in axes.iter().zip(scales).filter(|(_, scale)| *scale != 1.0) {
        let from = shape[*axis].known_size().ok_or(Decline::Opaque)?;
        found.push((*axis, Axis { from, to: (from as f64 * scale).floor() as usize, scale }));
    }
    Ok(found)
}

impl Coordinates {
    /// Where element `i` of the result lies in the operand.
    fn of(self, axis: Axis, i: usize) -> f64 {
        let x = i as f64;
        let half_pixel = (x + 0.5) / axis.scale - 0.5;
        match self {
            Coordinates::HalfPixel => half_pixel,
            Coordinates::HalfPixelSymmetric => {
                let adjustment = axis.to as f64 / (axis.scale * axis.from as f64);
                axis.from as f64 / 2.0 * (1.0 - adjustment) + half_pixel
            }
            Coordinates::PytorchHalfPixel => {
                if axis.to > 1 {
                    half_pixel
                } else {
                    0.0
                }
            }
            Coordinates::AlignCorners => {
                let last = |n: usize| n.saturating_sub(1) as f64;
                if axis.to > 1 { x * last(axis.from) / last(axis.to) } else { 0.0 }
            }
            Coordinates::Asymmetric => x / axis.scale,
        }
    }
}

fn rounded(x: f64, nearest: Nearest, size: usize) -> i64 {
    let at = match nearest {
        Nearest::Floor => x.floor(),
        Nearest::Ceil => x.ceil(),
        Nearest::PreferFloor => (x - 0.5).ceil(),
        Nearest::PreferCeil => (x + 0.5).floor(),
    };
    at.clamp(0.0, size.saturating_sub(1) as f64) as i64
}

/// `[from, to]`, row-major: column `i` holds the weights of element `i` of the result.
fn weights(mode: Mode, coordinates: Coordinates, axis: Axis) -> Vec<f32> {
    let last = axis.from.saturating_sub(1) as f64;
    let mut matrix = vec![0f64; axis.from * axis.to];
    for i in 0..axis.to {
        let x = coordinates.of(axis, i);
        // Linear interpolation holds the border's value outside of it.
        let x = if matches!(mode, Mode::Linear) { x.clamp(0.0, last) } else { x };
        let (base, part) = (x.floor(), x - x.floor());
        let taps: Vec<(f64, f64)> = match mode {
            Mode::Cubic { a, .. } => {
                (-1i8..=2).map(|o| (base + f64::from(o), cubic(a, (part - f64::from(o)).abs()))).collect()
            }
            _ => vec![(base, 1.0 - part), (base + 1.0, part)],
        };
        let inside = |at: f64| (0.0..=last).contains(&at);
        let excludes = matches!(mode, Mode::Cubic { exclude_outside: true, .. });
        let kept = |at: f64| !excludes || inside(at);
        let sum: f64 = taps.iter().filter(|(at, _)| kept(*at)).map(|(_, w)| w).sum();
        for (at, weight) in taps.into_iter().filter(|(at, _)| kept(*at)) {
            let row = at.clamp(0.0, last) as usize;
            matrix[row * axis.to + i] += if excludes { weight / sum } else { weight };
        }
    }
    matrix.into_iter().map(|w| w as f32).collect()
}

/// Keys' kernel: the weight of an element at distance `d`, at most 2.
fn cubic(a: f64, d: f64) -> f64 {
    if d <= 1.0 {
        ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0
    } else {
        ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a
    }
}

/// The product along an axis with `[from, to]`.
fn mapped(
    c: &mut NodeContext<'_>,
    x: ValueId,
    axis: usize,
    matrix: &[f32],
    size: Axis,
) -> Result<ValueId, Decline> {
    let dtype = c.dtype(x)?;
    if !dtype.is_float() {
        return Err(Decline::Opaque);
    }
    let tensor = Tensor::from_vec(vec![size.from, size.to], matrix.to_vec()).map_err(|_| Decline::Opaque)?;
    let mut w = c.graph.constant(tensor);
    if dtype != DType::F32 {
        w = c.add(Op::Cast { to: dtype }, &[w])?;
    }
    let last = c.rank(x)? - 1;
    let mut perm: Vec<usize> = (0..=last).collect();
    perm.swap(axis, last);
    let (before, after) = (axis != last).then_some((perm.clone(), perm)).unzip();
    let x = match before {
        Some(perm) => c.add(Op::Transpose { perm }, &[x])?,
        None => x,
    };
    let y = c.add(Op::MatMul, &[x, w])?;
    match after {
        Some(perm) => c.add(Op::Transpose { perm }, &[y]),
        None => Ok(y),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linear(mode: Mode, coordinates: Coordinates, x: &[f64], to: usize, scale: f64) -> Vec<f64> {
        let axis = Axis { from: x.len(), to, scale };
        let w = weights(mode, coordinates, axis);
        (0..to).map(|i| (0..x.len()).map(|r| x[r] * f64::from(w[r * to + i])).sum()).collect()
    }

    fn near(actual: &[f64], expected: &[f64]) {
        assert_eq!(actual.len(), expected.len());
        assert!(actual.iter().zip(expected).all(|(a, e)| (a - e).abs() < 1e-5), "{actual:?} {expected:?}");
    }

    /// The numbers of the ONNX specification's examples, separated by axis.
    #[test]
    fn weights_are_the_specification_s() {
        let up =
            |mode, coordinates, x: &[f64], to| linear(mode, coordinates, x, to, to as f64 / x.len() as f64);
        near(&up(Mode::Linear, Coordinates::HalfPixel, &[1.0, 2.0], 4), &[1.0, 1.25, 1.75, 2.0]);
        let corners = up(Mode::Linear, Coordinates::AlignCorners, &[1.0, 2.0], 4);
        near(&corners, &[1.0, 4.0 / 3.0, 5.0 / 3.0, 2.0]);
        let cubic = |exclude_outside| Mode::Cubic { a: -0.75, exclude_outside };
        // Rows and columns of `resize_upsample_scales_cubic` add: x[r, c] = 4 r + c + 1.
        let one = up(cubic(false), Coordinates::HalfPixel, &[0.0, 1.0, 2.0, 3.0], 8);
        near(&[4.0 * one[0] + one[0] + 1.0], &[0.47265625]);
        near(&[4.0 * one[0] + one[1] + 1.0], &[0.76953125]);
        near(&[4.0 * one[0] + one[3] + 1.0], &[1.875]);
        let down = linear(Mode::Linear, Coordinates::HalfPixel, &[1.0, 2.0, 3.0, 4.0], 2, 0.6);
        near(&down, &[1.0 + 1.0 / 3.0, 3.0]);
        for mode in [cubic(true), cubic(false), Mode::Linear] {
            near(&linear(mode, Coordinates::Asymmetric, &[2.0; 5], 7, 1.4), &[2.0; 7]);
        }
    }

    #[test]
    fn the_nearest_element_is_chosen_as_told() {
        use Nearest::*;
        let at = |x, nearest| rounded(x, nearest, 4);
        assert_eq!([Floor, Ceil, PreferFloor, PreferCeil].map(|n| at(1.5, n)), [1, 2, 1, 2]);
        assert_eq!([Floor, Ceil, PreferFloor, PreferCeil].map(|n| at(1.2, n)), [1, 2, 1, 1]);
        assert_eq!([at(-0.4, Floor), at(7.0, Ceil)], [0, 3]);
    }
}
