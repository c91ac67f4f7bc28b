//! Random models: what they consist of, and their weights.

use proptest::prelude::*;
use snlp_passes::ir::DType;
use snlp_passes::plan::{Init, Parallel, Segment, SurrogateChoice, TapRule};

/// Normalisations.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Norm {
    Rms,
    Layer,
}

/// Where the normalisations stand.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Placement {
    /// `x + g(norm(x))`.
    Pre,
    /// `norm(x + g(x))`.
    Post,
}

/// Activations.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Activation {
    Relu,
    GeluErf,
}

/// What makes the chain's input from the model's input.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Prefix {
    None,
    Norm,
    Scale,
    Embedding,
}

/// The sub-blocks of a layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Blocks {
    Attention,
    AttentionMlp,
    AttentionMlpMlp,
    /// `Add(Add(attn(x), mlp(x)), x)`: one join.
    ParallelSum,
    /// `Add(mlp(x), Add(x, attn(x)))`: two joins.
    ParallelNested,
    /// `Add(attn(x), Add(x, mlp(x)))`.
    ParallelNestedMlpFirst,
}

impl Blocks {
    /// Branches added to the state.
    pub fn joins(self) -> usize {
        match self {
            Blocks::Attention | Blocks::ParallelSum => 1,
            Blocks::AttentionMlp | Blocks::ParallelNested | Blocks::ParallelNestedMlpFirst => 2,
            Blocks::AttentionMlpMlp => 3,
        }
    }
}

/// A value from outside the chain that an attention reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    None,
    /// `v + side`, one side for all layers.
    SharedValue,
    /// `v + side_l`, an input per layer.
    OwnValue,
    /// `v + sigmoid(norm(x) w) · table_l[ids]`.
    GatedTable,
    /// `side · attention`, one side for all layers.
    SharedGate,
}

/// One layer.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct LayerSpec {
    pub blocks: Blocks,
    pub side: Side,
    pub mlp_width: usize,
    /// `λ·h + μ·x0` before the first sub-block.
    pub map: Option<(f64, f64)>,
}

/// A state read after the trunk.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct TapSpec {
    pub after_layer: usize,
    /// Subtracted from the trunk's output with this factor, or an output of the model.
    pub factor: Option<f64>,
}

/// A model.
#[derive(Clone, Debug)]
pub struct Spec {
    pub batch: usize,
    pub seq: usize,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub dtype: DType,
    pub norm: Norm,
    pub placement: Placement,
    pub activation: Activation,
    pub prefix: Prefix,
    /// Attention as one operator instead of two products and a softmax.
    pub fused_attention: bool,
    /// Q, K and V from one product.
    pub packed: bool,
    pub bias: bool,
    pub causal: bool,
    /// MLPs see the rows of two kinds apart, chosen by NonZero, and scatter what they make of them.
    pub routed: bool,
    /// An additive mask as model input.
    pub mask: bool,
    /// Keys and values of earlier calls are inputs, grown ones outputs.
    pub cached: bool,
    /// Order of operands, bit by bit.
    pub swaps: u32,
    pub layers: Vec<LayerSpec>,
    pub taps: Vec<TapSpec>,
    pub seed: u64,
}

pub const EPSILON: f64 = 0.01;

impl Spec {
    /// A pre-norm model without any peculiarity.
    pub fn plain(layers: usize) -> Self {
        let layer = LayerSpec { blocks: Blocks::AttentionMlp, side: Side::None, mlp_width: 8, map: None };
        Spec {
            batch: 1,
            seq: 3,
            hidden: 4,
            heads: 1,
            kv_heads: 1,
            dtype: DType::F64,
            norm: Norm::Rms,
            placement: Placement::Pre,
            activation: Activation::Relu,
            prefix: Prefix::None,
            fused_attention: true,
            packed: false,
            bias: false,
            causal: true,
            routed: false,
            mask: false,
            cached: false,
            swaps: 0,
            layers: vec![layer; layers],
            taps: vec![],
            seed: 1,
        }
    }

    /// Bit `i` of the operand orders.
    pub fn swapped(&self, i: usize) -> bool {
        self.swaps >> (i % 32) & 1 == 1
    }
}

type Shape = (usize, usize, usize, bool, bool, bool);
type Style = (u8, u8, u8, u8, bool, bool, bool, bool, bool);
type Layout = (u8, u8, u8, u8, Vec<u8>, u8);
type RawTap = (u8, Option<f64>);

/// Models of 2 to `max_layers` layers.
pub fn specs(max_layers: usize) -> impl Strategy<Value = Spec> {
    let shape = (1usize..=2, 2usize..=4, 2usize..=4, any::<bool>(), any::<bool>(), any::<bool>());
    let bools = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let style = (0u8..2, 0u8..2, 0u8..8, 0u8..4, bools)
        .prop_map(|(a, b, c, d, (e, f, g, h, i))| (a, b, c, d, e, f, g, h, i));
    let layers = proptest::collection::vec(any::<u8>(), 2..=max_layers);
    let layout = (0u8..8, 0u8..6, 0u8..5, 0u8..6, layers, 0u8..6);
    let tap = (any::<u8>(), prop_oneof![3 => (0.1f64..0.5).prop_map(Some), 1 => Just(None)]);
    let taps = prop_oneof![
        2 => Just(vec![]),
        2 => proptest::collection::vec(tap.clone(), 1),
        1 => proptest::collection::vec(tap, 2)
    ];
    (shape, style, layout, taps, any::<u32>(), any::<u64>()).prop_map(
        |(shape, style, layout, taps, swaps, seed)| assemble(shape, style, layout, &taps, swaps, seed),
    )
}

fn assemble(shape: Shape, style: Style, layout: Layout, taps: &[RawTap], swaps: u32, seed: u64) -> Spec {
    let (batch, seq, half, two_heads, grouped, double) = shape;
    let (norm, activation, placement, prefix, fused_attention, packed, bias, causal, mask) = style;
    let (variation, blocks, side, maps, per_layer, other_blocks) = layout;
    let heads = if two_heads { 2 } else { 1 };
    let hidden = 2 * half;
    let placement = if placement == 0 { Placement::Post } else { Placement::Pre };
    let layers = layers(placement, variation, blocks, other_blocks, side, maps, &per_layer, seed);
    let mut spec = Spec {
        batch,
        seq,
        hidden,
        heads,
        kv_heads: if grouped && fused_attention { 1 } else { heads },
        dtype: if double { DType::F64 } else { DType::F32 },
        norm: if norm == 0 { Norm::Rms } else { Norm::Layer },
        placement,
        activation: if activation == 0 { Activation::Relu } else { Activation::GeluErf },
        prefix: [Prefix::None, Prefix::Norm, Prefix::Scale, Prefix::Embedding][usize::from(prefix)],
        fused_attention,
        packed,
        bias,
        causal: causal && fused_attention,
        routed: seed.is_multiple_of(4),
        mask,
        cached: false,
        swaps,
        taps: vec![],
        layers,
        seed,
    };
    let places = spec.layers.len() + 1;
    for (at, factor) in taps {
        let after_layer = usize::from(*at) % places;
        if spec.taps.iter().all(|t| t.after_layer != after_layer) {
            spec.taps.push(TapSpec { after_layer, factor: *factor });
        }
    }
    spec
}

/// Layers of one kind, of two kinds in turn, or of two kinds in any order.
#[allow(clippy::too_many_arguments)]
fn layers(
    placement: Placement,
    variation: u8,
    blocks: u8,
    other_blocks: u8,
    side: u8,
    maps: u8,
    per_layer: &[u8],
    seed: u64,
) -> Vec<LayerSpec> {
    let kind = |i: u8| {
        use Blocks::*;
        let all =
            [Attention, AttentionMlp, AttentionMlpMlp, ParallelSum, ParallelNested, ParallelNestedMlpFirst];
        all[usize::from(i) % if placement == Placement::Post { 3 } else { 6 }]
    };
    let side = [Side::None, Side::SharedValue, Side::OwnValue, Side::GatedTable, Side::SharedGate]
        [usize::from(side)];
    let mut rng = Rng::new(seed ^ 0x5eed);
    per_layer
        .iter()
        .enumerate()
        .map(|(i, bits)| {
            // 0-2: one kind; 3: odd layers; 4, 5: any layers; 6: widths; 7: other sub-blocks.
            let other = match variation {
                0..=2 => false,
                3 => i % 2 == 1,
                7 => bits & 7 == 0,
                _ => bits & 1 == 1,
            };
            let with_side = variation <= 1 || (variation <= 5 && other);
            let mapped = match maps {
                _ if placement == Placement::Post => false,
                0..=2 => false,
                3 | 4 => true,
                // Rarely only some layers: such layers cannot be fused with the others.
                // (Maps that the first layer alone has belong to what is before the chain.)
                _ => i < 2 || bits & 0x30 != 0,
            };
            // Equal factors make one value of all layers' `μ·x0`.
            let drawn = (0.9 + 0.2 * rng.signed(), 0.1 + 0.2 * rng.signed());
            let factors = if maps == 3 { (0.9, 0.15) } else { drawn };
            LayerSpec {
                blocks: kind(if variation == 7 && other { other_blocks } else { blocks }),
                side: if with_side { side } else { Side::None },
                mlp_width: if (variation == 6 || variation == 5) && other { 5 } else { 8 },
                map: mapped.then_some(factors),
            }
        })
        .collect()
}

/// What a plan's segments are drawn from; [`fit`] makes them fit a chain.
pub type RawSegment = (bool, usize, usize, (usize, u8, u8, f64, bool, bool));

pub const INITS: [Init; 3] = [Init::H0, Init::BatchForward, Init::Preheat];

/// Raw segments.
pub fn segments(max: usize) -> impl Strategy<Value = Vec<RawSegment>> {
    let elk = prop_oneof![2 => Just(0.0), 1 => 0.05f64..0.9];
    let options = (1usize..=4, 0u8..3, 0u8..4, elk, any::<bool>(), any::<bool>());
    let units = prop_oneof![3 => 1usize..=3, 1 => 4usize..=8];
    let fused = prop_oneof![1 => Just(1), 1 => 2usize..=4];
    let segment = (proptest::bool::weighted(0.8), units, fused, options);
    proptest::collection::vec(segment, 1..=max)
}

/// The segments that fit into `layers`, in order; at least one is parallel unless all are sequential.
pub fn fit(raw: &[RawSegment], layers: usize) -> Vec<Segment> {
    let mut left = layers;
    let mut out = Vec::new();
    for (parallel, units, fused, (iterations, init, surrogate, elk, avg, unit)) in raw {
        if left == 0 {
            break;
        }
        let segment = if *parallel {
            let fused = (*fused).min(left);
            Segment::Parallel(Parallel {
                iterations: *iterations,
                init: INITS[usize::from(*init)],
                surrogate: [
                    SurrogateChoice::Auto,
                    SurrogateChoice::Identity,
                    SurrogateChoice::Transfer,
                    SurrogateChoice::Jacobi,
                ][usize::from(*surrogate)],
                elk: *elk,
                avg: *avg,
                tap: if *unit { TapRule::Unit } else { TapRule::Partial },
                kv: None,
                ..Parallel::new((*units).min(left / fused), fused)
            })
        } else {
            Segment::Sequential((*fused).min(left))
        };
        left -= segment.layers();
        out.push(segment);
    }
    out
}

/// SplitMix64, so that weights depend on nothing but the seed.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [-1, 1), exact in f32.
    pub fn signed(&mut self) -> f64 {
        f64::from(((self.next() >> 40) as f64 / f64::from(1u32 << 23) - 1.0) as f32)
    }

    /// So many numbers of at most this size, each exact in f32.
    pub fn vector(&mut self, n: usize, size: f64) -> Vec<f64> {
        (0..n).map(|_| f64::from((size * self.signed()) as f32)).collect()
    }
}

/// A row-major matrix.
#[derive(Clone, Debug)]
pub struct Matrix {
    pub rows: usize,
    pub cols: usize,
    pub data: Vec<f64>,
}

impl Matrix {
    fn random(rng: &mut Rng, rows: usize, cols: usize, gain: f64) -> Self {
        Matrix { rows, cols, data: rng.vector(rows * cols, gain * (3.0 / rows as f64).sqrt()) }
    }
}

/// Parameters of a normalisation.
#[derive(Clone, Debug)]
pub struct NormWeights {
    pub scale: Vec<f64>,
    /// Zero and unused for RMS.
    pub bias: Vec<f64>,
}

impl NormWeights {
    fn random(rng: &mut Rng, n: usize) -> Self {
        let scale = rng.vector(n, 0.5).into_iter().map(|x| f64::from((1.0 + x) as f32)).collect();
        NormWeights { scale, bias: rng.vector(n, 0.1) }
    }
}

/// An MLP.
#[derive(Clone, Debug)]
pub struct Mlp {
    pub norm: NormWeights,
    pub up: Matrix,
    pub up_bias: Vec<f64>,
    pub down: Matrix,
    pub down_bias: Vec<f64>,
}

/// A layer's weights.
#[derive(Clone, Debug)]
pub struct LayerWeights {
    pub norm: NormWeights,
    pub q: Matrix,
    pub k: Matrix,
    pub v: Matrix,
    pub o: Matrix,
    pub o_bias: Vec<f64>,
    pub mlps: Vec<Mlp>,
    /// `[TABLE_ROWS, kv width]`, for [`Side::GatedTable`].
    pub table: Matrix,
    /// `[hidden, 1]`.
    pub gate: Matrix,
    /// `[batch, seq, kv width]`, for [`Side::OwnValue`].
    pub own_side: Vec<f64>,
}

pub const TABLE_ROWS: usize = 5;

/// A model with its weights and inputs. Weights and inputs are exact in f32.
#[derive(Clone, Debug)]
pub struct Model {
    pub spec: Spec,
    /// `[batch, seq, hidden]`; unused with an embedding.
    pub x: Vec<f64>,
    /// `[batch, seq]`.
    pub ids: Vec<usize>,
    /// `[TABLE_ROWS, hidden]`.
    pub embedding: Matrix,
    pub prefix_norm: NormWeights,
    pub final_norm: NormWeights,
    /// `[batch, seq, kv width]`.
    pub shared_side: Vec<f64>,
    /// `[batch, seq, hidden]`.
    pub shared_gate: Vec<f64>,
    /// `[batch, 1, seq, seq]`.
    pub mask: Vec<f64>,
    pub layers: Vec<LayerWeights>,
}

/// A calibration, as good as any: of the state behind a layer `bias [d]`, `down [d, 2]` and `up [2, d]`.
pub fn calibrated(spec: &Spec, layer: usize) -> [Vec<f64>; 3] {
    let mut rng = Rng::new(spec.seed ^ (layer as u64 + 1));
    // In f32 exactly, as files hold them.
    let mut draw = |n: usize| (0..n).map(|_| (rng.next() % 1024) as f64 / 1024.0 - 0.5).collect();
    [draw(spec.hidden), draw(2 * spec.hidden), draw(2 * spec.hidden)]
}

impl Model {
    pub fn new(spec: &Spec) -> Self {
        let mut rng = Rng::new(spec.seed);
        let rng = &mut rng;
        let (d, positions) = (spec.hidden, spec.batch * spec.seq);
        let kv = spec.hidden / spec.heads * spec.kv_heads;
        Model {
            x: rng.vector(positions * d, 1.5),
            ids: (0..positions).map(|_| (rng.next() % TABLE_ROWS as u64) as usize).collect(),
            embedding: Matrix { rows: TABLE_ROWS, cols: d, data: rng.vector(TABLE_ROWS * d, 1.5) },
            prefix_norm: NormWeights::random(rng, d),
            final_norm: NormWeights::random(rng, d),
            shared_side: rng.vector(positions * kv, 0.5),
            shared_gate: rng.vector(positions * d, 1.0),
            mask: rng.vector(spec.batch * spec.seq * spec.seq, 2.0),
            layers: spec.layers.iter().map(|l| layer_weights(rng, spec, l, kv)).collect(),
            spec: spec.clone(),
        }
    }
}

fn layer_weights(rng: &mut Rng, spec: &Spec, layer: &LayerSpec, kv: usize) -> LayerWeights {
    let (d, f) = (spec.hidden, layer.mlp_width);
    let mlps = match layer.blocks {
        Blocks::Attention => 0,
        Blocks::AttentionMlpMlp => 2,
        _ => 1,
    };
    LayerWeights {
        norm: NormWeights::random(rng, d),
        q: Matrix::random(rng, d, d, 1.0),
        k: Matrix::random(rng, d, kv, 1.0),
        v: Matrix::random(rng, d, kv, 0.6),
        o: Matrix::random(rng, d, d, 0.5),
        o_bias: rng.vector(d, 0.1),
        mlps: (0..mlps)
            .map(|_| Mlp {
                norm: NormWeights::random(rng, d),
                up: Matrix::random(rng, d, f, 0.7),
                up_bias: rng.vector(f, 0.1),
                down: Matrix::random(rng, f, d, 0.5),
                down_bias: rng.vector(d, 0.1),
            })
            .collect(),
        table: Matrix { rows: TABLE_ROWS, cols: kv, data: rng.vector(TABLE_ROWS * kv, 0.5) },
        gate: Matrix::random(rng, d, 1, 1.0),
        own_side: rng.vector(spec.batch * spec.seq * kv, 0.5),
    }
}
