//! The proof: random small networks, each mode against the dense runs that it stands for, on tract.

use std::collections::HashMap;

use tract_onnx::{
    pb::{ModelProto, tensor_proto::DataType},
    prelude::{
        Datum, Framework, InferenceModelExt, IntoRunnable, IntoTValue, IntoTensor, TVec, Tensor as Values,
        TypedRunnableModel,
    },
    tract_core::internal::DatumTypeExt,
};

use super::*;
use crate::error::Kind;
use onnx::{Attribute, Dim, Graph, Random};

#[path = "../../tests/common/onnx.rs"]
#[allow(dead_code)]
mod onnx;

const SIDE: usize = 6;
const CHANNELS: usize = 2;
const CLASSES: usize = 3;

/// A network in the making: the tensor that it has come to.
struct Maker {
    graph: Graph,
    x: String,
    channels: usize,
    /// Frames from one column to the next.
    stride: usize,
    side: usize,
    /// Nothing in it swallows a change: no rectifier, no maximum.
    frank: bool,
}

/// How time is padded: so that a stride of one keeps the number of columns.
fn split(total: usize, random: &mut Random) -> [i64; 2] {
    let front = random.below(total + 1);
    [front as i64, (total - front) as i64]
}

impl Maker {
    /// A convolution over `kt` columns; `pads` in time.
    fn conv(&mut self, x: &str, [c_in, c_out]: [usize; 2], kt: usize, stride: usize, pads: [i64; 2]) -> String {
        let side = if self.side > 2 { 3 } else { 1 };
        let p = (side / 2) as i64;
        let pads = [pads[0], p, p, pads[1], p, p];
        let strides = [stride as i64, 1, 1];
        let y = self.graph.convolution(
            x,
            [c_in, c_out],
            [kt, side, side],
            &[("pads", Attribute::Ints(&pads)), ("strides", Attribute::Ints(&strides))],
        );
        self.relu(&y)
    }

    fn relu(&mut self, x: &str) -> String {
        self.graph.op(if self.frank { "LeakyRelu" } else { "Relu" }, &[x], &[])
    }

    fn pool(&mut self, op: &str, x: &str, kt: usize, stride: usize, pads: [i64; 2]) -> String {
        let op = if self.frank { "AveragePool" } else { op };
        let pads = [pads[0], 0, 0, pads[1], 0, 0];
        self.graph.op(
            op,
            &[x],
            &[
                ("kernel_shape", Attribute::Ints(&[kt as i64, 1, 1])),
                ("strides", Attribute::Ints(&[stride as i64, 1, 1])),
                ("pads", Attribute::Ints(&pads)),
            ],
        )
    }

    /// One of everything that the compiler has a rule for.
    fn layer(&mut self, kind: usize, random: &mut Random) {
        let x = self.x.clone();
        let c = self.channels;
        match kind {
            // One convolution, any kernel.
            0 => {
                let kt = 1 + random.below(5);
                let pads = split(kt - 1, random);
                let out = 2 + random.below(3);
                self.x = self.conv(&x, [c, out], kt, 1, pads);
                self.channels = out;
            }
            // A stride of two, padded as TensorFlow's SAME does.
            1 if self.stride < 8 => {
                // A kernel of one would leave every other column unused.
                let kt = (1 + random.below(7)).max(if self.frank { 2 } else { 1 });
                let total = kt.saturating_sub(2);
                let pads = [(total / 2) as i64, (total - total / 2) as i64];
                self.x = match random.below(3) {
                    0 if kt >= 2 => self.pool("MaxPool", &x, kt, 2, pads),
                    1 if kt >= 2 => self.pool("AveragePool", &x, kt, 2, pads),
                    _ => self.conv(&x, [c, c], kt, 2, pads),
                };
                self.stride *= 2;
            }
            // Branches of unequal reach, as an inception module.
            1 | 2 => {
                let one = self.conv(&x, [c, 2], 1, 1, [0, 0]);
                let kt = 2 + random.below(4);
                let pads = split(kt - 1, random);
                let inner = self.conv(&x, [c, 2], 1, 1, [0, 0]);
                let far = self.conv(&inner, [2, 2], kt, 1, pads);
                let k2 = 1 + random.below(3);
                let pads = split(k2 - 1, random);
                let pooled = self.pool("MaxPool", &x, k2, 1, pads);
                let pooled = self.conv(&pooled, [c, 1], 1, 1, [0, 0]);
                self.x = self.graph.op("Concat", &[&one, &far, &pooled], &[("axis", Attribute::Int(1))]);
                self.channels = 5;
            }
            // A residual block; its shortcut as it is, or through a convolution.
            3 => {
                let kt = 2 + random.below(3);
                let pads = split(kt - 1, random);
                let a = self.conv(&x, [c, c], kt, 1, pads);
                let pads = split(kt - 1, random);
                let b = self.conv(&a, [c, c], kt, 1, pads);
                let short = if random.below(2) == 0 { x } else { self.conv(&x, [c, c], 1, 1, [0, 0]) };
                let sum = self.graph.op("Add", &[&b, &short], &[]);
                self.x = self.relu(&sum);
            }
            // Batch norm, dilation, and padding that is a node of its own.
            4 => {
                let ones = self.graph.floats(&[c], &vec![1.2; c]);
                let zeros = self.graph.floats(&[c], &vec![0.1; c]);
                let normed = self.graph.op("BatchNormalization", &[&x, &ones, &zeros, &zeros, &ones], &[]);
                let pads = split(4, random);
                let amounts = self.graph.ints(&[0, 0, pads[0], 0, 0, 0, 0, pads[1], 0, 0]);
                let padded = self.graph.op("Pad", &[&normed, &amounts], &[]);
                let y =
                    self.graph.convolution(&padded, [c, c], [3, 1, 1], &[("dilations", Attribute::Ints(&[2, 1, 1]))]);
                self.x = if self.frank { y } else { self.graph.op("Sigmoid", &[&y], &[]) };
            }
            // SAME in words, and fewer pixels.
            _ => {
                let kt = 1 + random.below(4);
                let word = if random.below(2) == 0 { "SAME_UPPER" } else { "SAME_LOWER" };
                let y = self.graph.convolution(&x, [c, 4], [kt, 1, 1], &[("auto_pad", Attribute::Text(word))]);
                let y = self.graph.op("LeakyRelu", &[&y], &[]);
                self.x = self.graph.op(
                    "MaxPool",
                    &[&y],
                    &[
                        ("kernel_shape", Attribute::Ints(&[1, 2, 2])),
                        ("strides", Attribute::Ints(&[1, 2, 2])),
                        ("auto_pad", Attribute::Text("SAME_UPPER")),
                    ],
                );
                self.side = self.side.div_ceil(2);
                self.channels = 4;
            }
        }
    }
}

/// A network whose time axis is open. `by_column`: with one score a column instead of their mean.
struct Network {
    bytes: Vec<u8>,
    stride: usize,
}

fn network(seed: u64, frank: bool, by_column: bool) -> Network {
    let mut random = Random(seed);
    let mut graph = Graph::new(seed ^ 77);
    let dims = [Dim::N(1), Dim::N(CHANNELS as i64), Dim::T("T"), Dim::N(SIDE as i64), Dim::N(SIDE as i64)];
    let x = graph.input("input", DataType::Float, &dims);
    let mut maker = Maker { graph, x, channels: CHANNELS, stride: 1, side: SIDE, frank };
    let first = (1 + random.below(7)).max(if frank { 2 } else { 1 });
    let total = first.saturating_sub(2);
    maker.x = maker.conv("input", [CHANNELS, 3], first, 2, [(total / 2) as i64, (total - total / 2) as i64]);
    (maker.channels, maker.stride) = (3, 2);
    for _ in 0..2 + random.below(3) {
        let kind = random.below(6);
        maker.layer(kind, &mut random);
    }
    let Maker { mut graph, x, channels, stride, side, .. } = maker;
    let pooled = graph.op(
        "AveragePool",
        &[&x],
        &[
            ("kernel_shape", Attribute::Ints(&[1 + random.below(2) as i64, side as i64, side as i64])),
            ("strides", Attribute::Ints(&[1, 1, 1])),
        ],
    );
    let logits = graph.convolution(&pooled, [channels, CLASSES], [1, 1, 1], &[]);
    let axes: &[i64] = if by_column { &[3, 4] } else { &[2, 3, 4] };
    let mean = graph.op("ReduceMean", &[&logits], &[("axes", Attribute::Ints(axes)), ("keepdims", Attribute::Int(0))]);
    let out = [Dim::N(1), Dim::N(CLASSES as i64), Dim::T("U")];
    graph.output(&mean, "logits", if by_column { &out } else { &out[..2] });
    Network { bytes: graph.bytes(), stride }
}

fn request(graph: &[u8], frames: usize, mode: Mode, hop: usize, columns: Option<usize>) -> Request<'_> {
    Request {
        graph,
        input: "input",
        shape: vec![1, CHANNELS, frames, SIDE, SIDE],
        axis: 2,
        output: "logits",
        mode,
        hop,
        columns,
    }
}

type Named = HashMap<String, Values>;

/// Runs a graph once on tract.
struct Runner {
    runnable: std::sync::Arc<TypedRunnableModel>,
    inputs: Vec<String>,
    outputs: Vec<String>,
}

impl Runner {
    fn new(bytes: &[u8], shapes: &HashMap<String, (Vec<usize>, DataType)>) -> Runner {
        let onnx = tract_onnx::onnx().with_ignore_output_shapes(true).with_ignore_value_info(true);
        let proto: ModelProto = onnx.proto_model_for_read(&mut &bytes[..]).unwrap();
        let graph = proto.graph.as_ref().unwrap();
        let stored: Vec<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
        let inputs: Vec<String> =
            graph.input.iter().map(|v| v.name.clone()).filter(|n| !stored.contains(&n.as_str())).collect();
        let outputs = graph.output.iter().map(|v| v.name.clone()).collect();
        let mut model = onnx.parse(&proto, None).unwrap().model;
        for (i, name) in inputs.iter().enumerate() {
            let (shape, dtype) = &shapes[name];
            let dtype = if *dtype == DataType::Int8 { i8::datum_type() } else { f32::datum_type() };
            model.set_input_fact(i, dtype.fact(shape).into()).unwrap();
        }
        Runner { runnable: model.into_optimized().unwrap().into_runnable().unwrap(), inputs, outputs }
    }

    fn run(&self, values: &Named) -> Named {
        let inputs: TVec<_> = self.inputs.iter().map(|n| values[n].clone().into_tvalue()).collect();
        let outputs = self.runnable.run(inputs).unwrap();
        self.outputs.iter().cloned().zip(outputs.into_iter().map(|v| v.into_tensor())).collect()
    }
}

fn floats(values: &Values) -> Vec<f32> {
    values.try_as_plain_ram().unwrap().as_slice::<f32>().unwrap().to_vec()
}

/// A clip, column by column: `[channel][frame][pixels]` cut to `from..to` as the input's values.
struct Video {
    frames: Vec<Vec<f32>>,
}

impl Video {
    fn new(seed: u64, frames: usize) -> Video {
        let mut random = Random(seed);
        Video { frames: (0..frames).map(|_| random.floats(CHANNELS * SIDE * SIDE)).collect() }
    }

    /// Frames `from..to`; before the first frame is nothing that may matter.
    fn cut(&self, from: i64, to: i64, before: f32) -> Values {
        let plane = SIDE * SIDE;
        let mut values = Vec::new();
        for c in 0..CHANNELS {
            for t in from..to {
                match usize::try_from(t) {
                    Ok(t) => values.extend(&self.frames[t][c * plane..][..plane]),
                    Err(_) => values.extend(std::iter::repeat_n(before, plane)),
                }
            }
        }
        Values::from_shape(&[1, CHANNELS, (to - from) as usize, SIDE, SIDE], &values).unwrap()
    }
}

fn dense(bytes: &[u8], video: &Video, from: usize, to: usize) -> Values {
    let shape = (vec![1, CHANNELS, to - from, SIDE, SIDE], DataType::Float);
    let runner = Runner::new(bytes, &[("input".to_owned(), shape)].into());
    let inputs = [("input".to_owned(), video.cut(from as i64, to as i64, 0.0))].into();
    runner.run(&inputs).remove("logits").unwrap()
}

/// Mean of columns `from..to` of scores by column `[1, classes, columns]`.
fn mean(by_column: &Values, from: usize, to: usize) -> Vec<f32> {
    let n = by_column.shape()[2];
    let scores = floats(by_column);
    (0..CLASSES).map(|c| scores[c * n..][from..to].iter().sum::<f32>() / (to - from) as f32).collect()
}

fn filled(state: &State, with: f32) -> Values {
    let n = state.shape.iter().product();
    if state.dtype == DataType::Int8 as i32 {
        return Values::from_shape(
            &state.shape,
            &vec![if with.is_nan() { 99i8 } else { with.clamp(-99.0, 99.0) as i8 }; n],
        )
        .unwrap();
    }
    Values::from_shape(&state.shape, &vec![with; n]).unwrap()
}

/// A program with its states on tract.
struct Live {
    program: Program,
    hop: Runner,
    prime: Option<Runner>,
    states: Named,
    filler: f32,
}

impl Live {
    fn new(program: Program, frames: usize, filler: f32) -> Live {
        let shape = |n: usize| (vec![1, CHANNELS, n, SIDE, SIDE], DataType::Float);
        let mut shapes: HashMap<String, (Vec<usize>, DataType)> = [("input".to_owned(), shape(program.frames))].into();
        for s in &program.states {
            shapes.insert(s.input.clone(), (s.shape.clone(), DataType::try_from(s.dtype).unwrap()));
        }
        let hop = Runner::new(&program.graph, &shapes);
        shapes.insert("input".to_owned(), shape(frames));
        let prime = program.prime.as_ref().map(|p| Runner::new(p, &shapes));
        let states = program.states.iter().map(|s| (s.input.clone(), filled(s, filler))).collect();
        Live { program, hop, prime, states, filler }
    }

    /// The hop that ends before frame `end`.
    fn step(&mut self, video: &Video, end: usize, prime: bool) -> Vec<f32> {
        let runner = if prime { self.prime.as_ref().unwrap() } else { &self.hop };
        let mut values = self.states.clone();
        values.insert("input".into(), video.cut(end as i64 - self.program.frames as i64, end as i64, self.filler));
        let mut outputs = runner.run(&values);
        for s in &self.program.states {
            let next = outputs.remove(&s.output).unwrap();
            assert_eq!(next.shape(), s.shape, "{}", s.output);
            self.states.insert(s.input.clone(), next);
        }
        floats(&outputs["logits"])
    }
}

fn assert_close(a: &[f32], b: &[f32], what: &str) {
    let far =
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m: f32, d| if d.is_nan() { f32::NAN } else { m.max(d) });
    assert!(far < 2e-5, "{what}: {far}: {a:?} and {b:?}");
}

/// Window, hop and network of a seed.
fn drawn(seed: u64, frank: bool) -> (Network, usize, usize) {
    let network = network(seed, frank, false);
    let mut random = Random(seed + 1000);
    let window = network.stride * (24 / network.stride + random.below(3)).max(2);
    let hop = network.stride * (1 + random.below(2));
    (network, window, hop)
}

const SEEDS: std::ops::Range<u64> = 0..40;

#[test]
fn window_mode_gives_the_dense_window_s_numbers() {
    let mut kept = 0;
    for seed in SEEDS {
        let (network, window, hop) = drawn(seed, false);
        let program = compile(&request(&network.bytes, window, Mode::Window, hop, None)).unwrap();
        assert!(program.macs <= program.macs_dense, "seed {seed}");
        kept += usize::from(program.macs < program.macs_dense);
        let video = Video::new(seed, window + 4 * hop);
        let mut live = Live::new(program, window, f32::NAN);
        for (n, end) in (window..=video.frames.len()).step_by(hop).enumerate() {
            let scores = live.step(&video, end, n == 0);
            let expected = floats(&dense(&network.bytes, &video, end - window, end));
            assert_close(&scores, &expected, &format!("seed {seed}, window {window}, hop {hop}, hop number {n}"));
        }
    }
    assert!(kept > SEEDS.end as usize / 2, "only {kept} networks had anything to keep");
}

#[test]
fn continuous_mode_gives_one_dense_run_over_everything() {
    for seed in SEEDS {
        let (network, window, hop) = drawn(seed, false);
        let by_column = network_by_column(seed);
        let columns = 1 + (seed % 3) as usize;
        let program = compile(&request(&network.bytes, window, Mode::Continuous, hop, Some(columns))).unwrap();
        assert!(program.macs < program.macs_dense, "seed {seed}");
        let frames = (program.warm_after.max(window) + 4 * hop).next_multiple_of(hop);
        let video = Video::new(seed, frames);
        let whole = dense(&by_column, &video, 0, frames);
        let in_window = dense(&by_column, &video, 0, window).shape()[2];
        let all = whole.shape()[2] as f32;
        for filler in [f32::NAN, 1e20, -1e20] {
            let mut live = Live::new(program.clone(), window, filler);
            for end in (hop..=frames).step_by(hop) {
                let scores = live.step(&video, end, false);
                if end >= program.warm_after {
                    // The columns' middle lies `lag` frames before the dense window's.
                    let s = network.stride as f32;
                    let extra = all - frames as f32 / s;
                    let middle = end as f32 / s + extra - in_window as f32 / 2.0 - program.lag / s;
                    let last = (middle + columns as f32 / 2.0).round() as usize;
                    let expected = mean(&whole, last - columns, last);
                    assert_close(
                        &scores,
                        &expected,
                        &format!("seed {seed}, window {window}, hop {hop}, at {end}, {filler}"),
                    );
                }
            }
        }
    }
}

#[test]
fn carried_mode_gives_dense_runs_over_everything_so_far() {
    for seed in SEEDS {
        let (network, window, hop) = drawn(seed, false);
        let by_column = network_by_column(seed);
        let program = compile(&request(&network.bytes, window, Mode::Carried, hop, None)).unwrap();
        let frames = (program.warm_after.max(window) + 3 * hop).next_multiple_of(hop);
        let video = Video::new(seed, frames);
        let in_window = dense(&by_column, &video, 0, window).shape()[2];
        for filler in [f32::NAN, 1e20] {
            let mut live = Live::new(program.clone(), window, filler);
            for end in (hop..=frames).step_by(hop) {
                let scores = live.step(&video, end, false);
                if end >= program.warm_after {
                    let whole = dense(&by_column, &video, 0, end);
                    let n = whole.shape()[2];
                    let expected = mean(&whole, n - in_window, n);
                    assert_close(
                        &scores,
                        &expected,
                        &format!("seed {seed}, window {window}, hop {hop}, at {end}, {filler}"),
                    );
                }
            }
        }
    }
}

fn network_by_column(seed: u64) -> Vec<u8> {
    network(seed, false, true).bytes
}

/// What would a compiler be worth that forgets a column? Every state's oldest column is spoiled in turn; scores that
/// stay the same would mean that the tests above could not see it missing, or that it is kept for nothing.
#[test]
fn a_state_without_its_oldest_column_is_noticed() {
    let (mut noticed, mut all) = (0, 0);
    for seed in SEEDS {
        let (network, window, hop) = drawn(seed, true);
        for mode in [Mode::Window, Mode::Carried, Mode::Continuous] {
            // A window that is shorter than what its end touches would not look at all that is computed.
            let window = if mode == Mode::Carried { 3 * window } else { window };
            let program = compile(&request(&network.bytes, window, mode, hop, None)).unwrap();
            let frames = (program.warm_after.max(window) + 12 * hop).next_multiple_of(hop);
            let video = Video::new(seed, frames);
            let first = if mode == Mode::Window { window } else { hop };
            for spoiled in 0..program.states.len() {
                let name = &program.states[spoiled].input;
                // Either may be swallowed by a rectifier.
                let differs = [50.0, -50.0, 1.0, -1.0].into_iter().any(|by| {
                    let mut live = Live::new(program.clone(), window, 0.0);
                    let mut reference = Live::new(program.clone(), window, 0.0);
                    (first..=frames).step_by(hop).any(|end| {
                        let prime = mode == Mode::Window && end == first;
                        if !prime {
                            let values = live.states.get_mut(name).unwrap();
                            *values = spoiled_first_column(values, by);
                        }
                        let (a, b) = (live.step(&video, end, prime), reference.step(&video, end, prime));
                        a.iter().zip(&b).any(|(a, b)| (a - b).abs() > 1e-5)
                    })
                });
                if !differs {
                    eprintln!("seed {seed}, {mode:?}: nothing reads the oldest column of {name}");
                }
                noticed += usize::from(differs);
                all += 1;
            }
        }
    }
    assert!(all > 100, "{all}");
    assert_eq!(noticed, all);
}

fn spoiled_first_column(values: &Values, by: f32) -> Values {
    let shape = values.shape();
    let (columns, plane) = (shape[2], shape[3] * shape[4]);
    let mut spoiled = floats(values);
    for c in 0..shape[1] {
        spoiled[c * columns * plane..][..plane].iter_mut().for_each(|v| *v += by);
    }
    Values::from_shape(shape, &spoiled).unwrap()
}

/// A graph over the window that ends in a mean over time, with `middle` in it.
fn with_middle(middle: impl FnOnce(&mut Graph, &str) -> String) -> Vec<u8> {
    let mut graph = Graph::new(5);
    let dims = [Dim::N(1), Dim::N(CHANNELS as i64), Dim::T("T"), Dim::N(SIDE as i64), Dim::N(SIDE as i64)];
    let x = graph.input("input", DataType::Float, &dims);
    let x = graph.convolution(&x, [CHANNELS, 4], [3, 1, 1], &[("auto_pad", Attribute::Text("SAME_UPPER"))]);
    let x = middle(&mut graph, &x);
    let axes = [2, 3, 4];
    let x = graph.op("ReduceMean", &[&x], &[("axes", Attribute::Ints(&axes)), ("keepdims", Attribute::Int(0))]);
    graph.output(&x, "logits", &[Dim::N(1), Dim::N(4)]);
    graph.bytes()
}

#[test]
fn what_has_no_rule_is_refused_by_name_with_what_would_help() {
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        (
            "all of time in the middle",
            with_middle(|g, x| {
                let pooled = g.op("GlobalAveragePool", &[x], &[]);
                g.op("Mul", &[x, &pooled], &[])
            }),
            &["Mul", "the whole window", "mode dense"],
        ),
        (
            "attention over time",
            with_middle(|g, x| {
                let turned = g.op("Transpose", &[x], &[("perm", Attribute::Ints(&[0, 1, 4, 3, 2]))]);
                g.op("MatMul", &[x, &turned], &[])
            }),
            &["MatMul"],
        ),
        (
            "an embedding of positions",
            with_middle(|g, x| {
                let positions = g.floats(&[1, 1, 16, 1, 1], &[0.5; 16]);
                g.op("Add", &[x, &positions], &[])
            }),
            &["Add", "column to column", "mode dense"],
        ),
        (
            "softmax over time",
            with_middle(|g, x| g.op("Softmax", &[x], &[("axis", Attribute::Int(2))])),
            &["Softmax", "mode dense"],
        ),
        ("an operator without a rule", with_middle(|g, x| g.op("NonZero", &[x], &[])), &["NonZero", "no rule"]),
        (
            "time joined to time",
            with_middle(|g, x| g.op("Concat", &[x, x], &[("axis", Attribute::Int(2))])),
            &["Concat", "time"],
        ),
        (
            "a circle",
            with_middle(|g, x| {
                g.op_into("Add", &[x, "later"], &["sooner"], &[]);
                g.op_into("Relu", &["sooner"], &["later"], &[]);
                "later".into()
            }),
            &["later", "circle"],
        ),
    ];
    for (what, bytes, words) in cases {
        for mode in [Mode::Window, Mode::Carried, Mode::Continuous] {
            let e = compile(&request(&bytes, 16, mode, 4, None)).expect_err(what);
            let text = e.to_string();
            assert_eq!(e.kind(), Kind::Model, "{what}: {text}");
            assert!(words.iter().all(|w| text.contains(w)), "{what}: {text}");
        }
    }
    // A graph that still has a time axis at its end.
    let by_column = network(3, false, true);
    let e = compile(&request(&by_column.bytes, 32, Mode::Window, 8, None)).unwrap_err().to_string();
    assert!(e.contains("`logits` still has a time axis"), "{e}");
    // Names that are not there.
    let plain = network(3, false, false);
    let unknown = Request { input: "picture", ..request(&plain.bytes, 32, Mode::Window, 8, None) };
    assert!(compile(&unknown).unwrap_err().to_string().contains("no input `picture`"));
    let unknown = Request { output: "scores", ..request(&plain.bytes, 32, Mode::Window, 8, None) };
    assert!(compile(&unknown).is_err());
}

/// Before opset 13 Softmax is over all axes from its own on, and that is 1 where it does not say; since then it is one
/// axis, the last.
#[test]
fn softmax_is_read_as_its_opset_has_it() {
    for op in ["Softmax", "LogSoftmax"] {
        for (opset, axis, good) in [
            (12, None, false),
            (12, Some(1), false),
            (12, Some(2), false),
            (12, Some(3), true),
            (12, Some(-1), true),
            (13, None, true),
            (13, Some(1), true),
            (13, Some(2), false),
        ] {
            let bytes = with_middle(|g, x| {
                g.opset = opset;
                let axis = axis.map(|a| ("axis", Attribute::Int(a)));
                g.op(op, &[x], axis.as_slice())
            });
            let asked = request(&bytes, 16, Mode::Window, 4, None);
            match compile(&asked) {
                Ok(program) => {
                    assert!(good, "{op} of opset {opset} over {axis:?} mixes time");
                    let video = Video::new(6, 20);
                    let mut live = Live::new(program, 16, f32::NAN);
                    live.step(&video, 16, true);
                    let scores = live.step(&video, 20, false);
                    assert_close(&scores, &floats(&dense(&bytes, &video, 4, 20)), &format!("{op} {opset} {axis:?}"));
                }
                Err(e) => {
                    assert!(!good && e.kind() == Kind::Model, "{op} of opset {opset} over {axis:?}: {e}");
                    assert!(e.to_string().contains(&format!("({op})")) && e.to_string().contains("mode dense"), "{e}");
                }
            }
        }
    }
}

/// Every byte of a small graph changed, and cut off everywhere: a sentence or a program, never a panic, and never more
/// memory or time than a graph takes.
#[test]
fn a_damaged_graph_is_a_sentence() {
    let good = network(8, false, false).bytes;
    let mut random = Random(11);
    let mut refused = 0;
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] = random.bits() as u8;
        refused += usize::from(compile(&request(&bytes, 32, Mode::Carried, 8, None)).is_err());
    }
    for length in (0..good.len()).step_by(7) {
        assert!(compile(&request(&good[..length], 32, Mode::Window, 8, None)).is_err(), "{length}");
    }
    assert!(refused > 100, "{refused}");
}

/// C3D's and ResNet's shapes: weights over all of time behind a flattening, shortcuts with a stride and no reach.
#[test]
fn networks_of_other_families_go_through_the_same_rules() {
    // C3D-like: pools with strides, then fully connected over what is left of time.
    let mut g = Graph::new(21);
    let side = SIDE as i64;
    let x = g.input("input", DataType::Float, &[Dim::N(1), Dim::N(2), Dim::N(16), Dim::N(side), Dim::N(side)]);
    let mut x = x;
    let mut c = 2;
    for (out, stride) in [(4, 2), (4, 2), (6, 2)] {
        let y = g.convolution(&x, [c, out], [3, 3, 3], &[("pads", Attribute::Ints(&[1; 6]))]);
        let y = g.relu(&y);
        x = g.op(
            "MaxPool",
            &[&y],
            &[("kernel_shape", Attribute::Ints(&[stride, 1, 1])), ("strides", Attribute::Ints(&[stride, 1, 1]))],
        );
        c = out;
    }
    let flat = g.op("Flatten", &[&x], &[]);
    let weights = g.weights(&[3, 6 * 2 * SIDE * SIDE]);
    let bias = g.floats(&[3], &[0.1, 0.2, 0.3]);
    let y = g.op("Gemm", &[&flat, &weights, &bias], &[("transB", Attribute::Int(1))]);
    g.output(&y, "logits", &[Dim::N(1), Dim::N(3)]);
    let c3d = g.bytes();

    // ResNet-like: a shortcut that is a convolution of 1 with a stride of 2.
    let mut g = Graph::new(22);
    let x = g.input("input", DataType::Float, &[Dim::N(1), Dim::N(2), Dim::N(16), Dim::N(side), Dim::N(side)]);
    let stem = g.convolution(&x, [2, 4], [3, 3, 3], &[("pads", Attribute::Ints(&[1; 6]))]);
    let mut x = g.relu(&stem);
    for _ in 0..2 {
        let strides = [2, 1, 1];
        let a = g.convolution(
            &x,
            [4, 4],
            [3, 3, 3],
            &[("pads", Attribute::Ints(&[1; 6])), ("strides", Attribute::Ints(&strides))],
        );
        let a = g.relu(&a);
        let b = g.convolution(&a, [4, 4], [3, 3, 3], &[("pads", Attribute::Ints(&[1; 6]))]);
        let short = g.convolution(&x, [4, 4], [1, 1, 1], &[("strides", Attribute::Ints(&strides))]);
        let sum = g.op("Add", &[&b, &short], &[]);
        x = g.relu(&sum);
    }
    let pooled = g.op("GlobalAveragePool", &[&x], &[]);
    let flat = g.op("Flatten", &[&pooled], &[]);
    let weights = g.weights(&[3, 4]);
    let y = g.op("Gemm", &[&flat, &weights], &[("transB", Attribute::Int(1))]);
    g.output(&y, "logits", &[Dim::N(1), Dim::N(3)]);
    let resnet = g.bytes();

    for (name, bytes, hop) in [("c3d", c3d, 8), ("resnet", resnet, 4)] {
        let video = Video::new(31, 16 + 4 * hop);
        let program = compile(&request(&bytes, 16, Mode::Window, hop, None)).unwrap();
        let mut live = Live::new(program, 16, f32::NAN);
        for (n, end) in (16..=video.frames.len()).step_by(hop).enumerate() {
            let scores = live.step(&video, end, n == 0);
            assert_close(&scores, &floats(&dense(&bytes, &video, end - 16, end)), &format!("{name} at {end}"));
        }
        let carried = compile(&request(&bytes, 16, Mode::Carried, hop, None)).unwrap();
        let frames = (carried.warm_after.max(16) + hop).next_multiple_of(hop);
        let video = Video::new(32, frames);
        let plain = reference(&request(&bytes, 16, Mode::Carried, hop, None), &carried, frames).unwrap();
        let mut live = Live::new(carried, 16, f32::NAN);
        let mut scores = Vec::new();
        for end in (hop..=frames).step_by(hop) {
            scores = live.step(&video, end, false);
        }
        assert_close(&scores, &floats(&dense(&plain, &video, 0, frames)), name);
    }
}

/// A pool over all of the window's columns ends time in a hop and in the clip that the hop is measured against alike,
/// whatever stride it has: in a longer clip it is over the last columns.
#[test]
fn a_pool_over_the_whole_window_is_measured_against_the_last_columns() {
    let side = SIDE as i64;
    for op in ["AveragePool", "MaxPool"] {
        // The window has 8 columns there; a kernel of 7 with a stride of 7 leaves the last one out.
        for (kernel, stride) in [(8, 8), (8, 1), (7, 7)] {
            let mut g = Graph::new(41);
            let x = g.input("input", DataType::Float, &[Dim::N(1), Dim::N(2), Dim::T("T"), Dim::N(side), Dim::N(side)]);
            let pads = Attribute::Ints(&[1; 6]);
            let x = g.convolution(&x, [2, 4], [3, 3, 3], &[("pads", pads), ("strides", Attribute::Ints(&[2, 1, 1]))]);
            let x = g.op("LeakyRelu", &[&x], &[]);
            let kernel = Attribute::Ints(&[kernel, side, side]);
            let x = g.op(op, &[&x], &[("kernel_shape", kernel), ("strides", Attribute::Ints(&[stride, 1, 1]))]);
            let flat = g.op("Flatten", &[&x], &[]);
            let weights = g.weights(&[3, 4]);
            let y = g.op("Gemm", &[&flat, &weights], &[("transB", Attribute::Int(1))]);
            g.output(&y, "logits", &[Dim::N(1), Dim::N(3)]);
            let bytes = g.bytes();
            for mode in [Mode::Carried, Mode::Continuous] {
                let asked = request(&bytes, 16, mode, 4, None);
                let program = compile(&asked).unwrap();
                let frames = (program.warm_after + 4).next_multiple_of(4).max(16);
                let video = Video::new(42, frames);
                let plain = reference(&asked, &program, frames).unwrap();
                let mut live = Live::new(program, 16, f32::NAN);
                let mut scores = Vec::new();
                for end in (4..=frames).step_by(4) {
                    scores = live.step(&video, end, false);
                }
                let what = format!("{op} {stride} {mode:?}");
                assert_close(&scores, &floats(&dense(&plain, &video, 0, frames)), &what);
            }
        }
    }
}

/// What the fuzzer starts from, as files: `cargo test --release --lib seeds_for -- --ignored` writes them anew.
#[test]
#[ignore = "writes fuzz/seeds/graph"]
fn seeds_for_the_fuzzer_are_written() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/graph");
    std::fs::create_dir_all(&folder).unwrap();
    for seed in 0..8 {
        let bytes = network(seed, false, seed % 4 == 3).bytes;
        std::fs::write(folder.join(format!("{seed}.onnx")), bytes).unwrap();
    }
}

#[test]
fn the_fuzzers_seeds_compile() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/graph");
    let mut compiled = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        compiled += usize::from(compile(&request(&bytes, 64, Mode::Carried, 8, None)).is_ok());
    }
    // A graph whose strides come to 16 takes no hop of 8.
    assert!(compiled >= 4, "{compiled}");
}
