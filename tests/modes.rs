//! The window modes as the product runs them: the shipped model on every backend that this machine has. The proof on
//! random networks is in `src/compile/tests.rs`.

#[path = "common/onnx.rs"]
#[allow(dead_code)]
mod onnx;

use std::path::Path;

use actiond::{
    clip::Clip,
    config::Mode,
    error::Kind,
    frame::{Frame, View},
    inference::{self, Hop, Lane, LoadOptions, Network, Tensor},
    input,
    model::{Model, Precision, Stream},
};
use onnx::{Attribute, Dim, Random};
use tract_onnx::pb::tensor_proto::DataType;

const HOP: usize = 8;

/// A stream of small pictures.
const SMALL: &str = "name = \"rgb\"\nkind = \"rgb\"\nframes = 16\nsize = [8, 8]\nfit = \"squeeze\"\nlayout = \"NCTHW\"\n\
     input = \"input\"\noutput = \"logits\"\ndtype = \"f32\"\nrange = [-1.0, 1.0]";

fn shipped() -> Model {
    Model::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default")).unwrap()
}

fn usable() -> Vec<&'static str> {
    let all = inference::available();
    for missing in all.iter().filter(|a| !a.usable) {
        eprintln!("skipped: {} ({})", missing.name, missing.found);
    }
    all.iter().filter(|a| a.usable).map(|a| a.name).collect()
}

fn load(model: &Model, backend: &str, precision: Precision, mode: Mode) -> Box<dyn Network> {
    let options = LoadOptions { precision: Some(precision), mode, hop: HOP, ..LoadOptions::default() };
    inference::load_with(model, &[backend.into()], &options).unwrap().0
}

fn load_at(model: &Model, backend: &str, mode: Mode, hop: usize) -> Box<dyn Network> {
    let options = LoadOptions { precision: Some(Precision::F32), mode, hop, ..LoadOptions::default() };
    inference::load_with(model, &[backend.into()], &options).unwrap().0
}

/// A moving pattern with noise on it, frame by frame, for each stream: what convolutions answer to. The numbers are those
/// of bytes, as cameras give them. Of any floats some lie so near the middle between two steps of INT8 that a runtime that
/// multiplies by a scale's inverse rounds them to the other side than one that divides: 0.07 of a logit, and no mode's fault.
struct Video(Vec<Vec<Vec<f32>>>);

impl Video {
    fn new(model: &Model, frames: usize, seed: u64) -> Video {
        let mut random = Random(seed);
        let stream = |s: &Stream| {
            let [w, h] = s.size;
            let frame = |t: usize| {
                let pixel = |i: usize| {
                    let (c, x, y) = (i / (w * h), i % w, i / w % h);
                    let wave = ((x as f32 * 0.21 + y as f32 * 0.13 + c as f32) - t as f32 * 0.7).sin();
                    (wave * 0.6, c)
                };
                (0..s.channels() * w * h).map(|i| pixel(i).0).collect::<Vec<f32>>()
            };
            (0..frames).map(frame).collect::<Vec<_>>()
        };
        let mut all: Vec<Vec<Vec<f32>>> = model.manifest.streams.iter().map(stream).collect();
        for value in all.iter_mut().flatten().flatten() {
            *value = ((*value + 0.3 * random.float() + 1.0) * 127.5).round() / 127.5 - 1.0;
        }
        Video(all)
    }

    /// The hop that ends before frame `end`, of as many frames as the network takes; before the first is the first.
    fn hop(&self, model: &Model, network: &dyn Network, end: usize, follows: bool) -> Hop {
        let mut hop = Hop::of(network, self.0.len());
        for (s, stream) in model.manifest.streams.iter().enumerate() {
            let n = hop.frames[s];
            let plane = stream.size[0] * stream.size[1];
            let mut values = Vec::with_capacity(n * stream.channels() * plane);
            for c in 0..stream.channels() {
                for back in (0..n).rev() {
                    values.extend(&self.0[s][(end - 1).saturating_sub(back)][c * plane..][..plane]);
                }
            }
            hop.inputs[s] = match hop.packed[s] {
                Some(packed) => input::pack(&values, packed, stream, n),
                None => Tensor::F32(values),
            };
        }
        hop.follows = follows;
        hop
    }

    /// Every hop's logits from `first` on; in a mode that carries states, hops before that go in as well.
    fn scores(&self, model: &Model, network: &mut dyn Network, first: usize) -> Vec<Vec<Vec<f32>>> {
        let begin = if network.reach().carried { HOP } else { first };
        let mut scores = Vec::new();
        for end in (begin..=self.0[0].len()).step_by(HOP) {
            let hop = self.hop(model, network, end, end > begin);
            let logits = network.step(Lane(0), &hop).unwrap().logits.clone();
            if end >= first {
                scores.push(logits);
            }
        }
        scores
    }
}

fn far(a: &[Vec<Vec<f32>>], b: &[Vec<Vec<f32>>]) -> f32 {
    assert_eq!(a.len(), b.len());
    let (a, b) = (a.iter().flatten().flatten(), b.iter().flatten().flatten());
    a.zip(b).map(|(a, b)| if (a - b).is_nan() { f32::INFINITY } else { (a - b).abs() }).fold(0.0, f32::max)
}

#[test]
fn window_mode_is_dense_mode_on_every_backend_in_every_precision() {
    let model = shipped();
    let video = Video::new(&model, 64 + 9 * HOP, 1);
    for backend in usable() {
        let mut in_f32 = Vec::new();
        for precision in [Precision::F32, Precision::Int8] {
            if backend == "openvino" && precision == Precision::Int8 && !inference::onnxruntime::adds_bytes_exactly() {
                eprintln!("skipped: openvino in int8, as this CPU has no VNNI and its sums saturate");
                continue;
            }
            if backend == "tract" && precision == Precision::Int8 {
                // It runs f32 by choice, and quantized graphs for minutes.
                continue;
            }
            let dense = video.scores(&model, load(&model, backend, precision, Mode::Dense).as_mut(), 64);
            let mut network = load(&model, backend, precision, Mode::Window);
            let window = video.scores(&model, network.as_mut(), 64);
            let difference = far(&dense, &window);
            eprintln!("{backend} {}: window and dense differ by {difference}", precision.name());
            // Floats may be added in another order where a kernel is chosen by the number of columns. Behind the layers
            // that stay f32 in a quantized graph such a difference, rounded, is now and then a whole step: less than
            // what quantizing costs, and bounded, as a dense window that is wrong would seem to cost much.
            let most = match precision {
                Precision::Int8 => far(&in_f32, &dense).min(0.06),
                _ => 2e-5,
            };
            eprintln!("{backend} {}: at most {most}", precision.name());
            if precision == Precision::F32 {
                in_f32 = dense.clone();
            }
            assert!(difference <= most, "{backend} {}: {difference}", precision.name());
            assert!(far(&dense, &dense[1..].iter().chain(&dense[..1]).cloned().collect::<Vec<_>>()) > 0.05);
            // A cut: the window behind it is computed whole, whatever the states say.
            network.cut(Lane(0));
            let again = network.step(Lane(0), &video.hop(&model, network.as_ref(), 64, false)).unwrap().logits.clone();
            assert!(far(&[again], &dense[..1]) <= most);
            assert!(network.reach().macs < network.reach().macs_dense * 3 / 4);
        }
    }
}

#[test]
fn carried_and_continuous_mode_give_the_same_numbers_on_every_backend() {
    let model = shipped();
    let video = Video::new(&model, 20 * HOP, 2);
    for mode in [Mode::Carried, Mode::Continuous] {
        let mut tract = load(&model, "tract", Precision::F32, mode);
        let expected = video.scores(&model, tract.as_mut(), 64);
        let reach = tract.reach();
        assert!(reach.carried && reach.warm_after > 64 && reach.macs * 3 < reach.macs_dense, "{reach:?}");
        for backend in usable() {
            if backend != "tract" {
                let scores = video.scores(&model, load(&model, backend, Precision::F32, mode).as_mut(), 64);
                let difference = far(&expected, &scores);
                eprintln!("{backend} f32 {}: differs from tract by {difference}", mode.name());
                assert!(difference < 1e-4, "{backend}: {difference}");
                let int8 = video.scores(&model, load(&model, backend, Precision::Int8, mode).as_mut(), 64);
                let difference = far(&expected, &int8);
                eprintln!("{backend} int8 {}: differs from f32 by {difference}", mode.name());
                // As far as INT8 is from f32 in dense mode.
                assert!(difference < 2.0, "{backend}: {difference}");
            }
        }
    }
}

/// Where every convolution is one of integers, nothing is rounded otherwise for other numbers of columns.
#[test]
fn in_integers_window_mode_is_dense_mode_to_the_last_bit() {
    if !usable().contains(&"cpu") || !inference::onnxruntime::adds_bytes_exactly() {
        eprintln!("skipped: no ONNX Runtime, or this CPU has no VNNI and convolves quantized values as floats");
        return;
    }
    let one = |pads: &'static [i64], strides: &'static [i64]| {
        [("pads", Attribute::Ints(pads)), ("strides", Attribute::Ints(strides))]
    };
    for seed in 0..6 {
        let folder = tempfile::tempdir().unwrap();
        let mut g = onnx::Graph::new(seed);
        g.quantized = true;
        let x = g.input("input", DataType::Float, &[1, 3, 16, 8, 8].map(Dim::N));
        let x = g.convolution(&x, [3, 16], [5, 3, 3], &one(&[1, 1, 1, 2, 1, 1], &[2, 1, 1]));
        let x = g.relu(&x);
        let x = g.fake_quantized(&x, 4.0 / 127.0);
        let kernel = [("kernel_shape", Attribute::Ints(&[3, 3, 3])), ("pads", Attribute::Ints(&[1; 6]))];
        let pool = g.op("MaxPool", &[&x], &kernel);
        let near = g.convolution(&pool, [16, 8], [1, 1, 1], &[]);
        let near = g.relu(&near);
        let near = g.fake_quantized(&near, 4.0 / 127.0);
        let far_reaching = g.convolution(&x, [16, 24], [3, 3, 3], &one(&[1; 6], &[1, 1, 1]));
        let far_reaching = g.relu(&far_reaching);
        let far_reaching = g.fake_quantized(&far_reaching, 4.0 / 127.0);
        let x = g.op("Concat", &[&near, &far_reaching], &[("axis", Attribute::Int(1))]);
        let x = g.convolution(&x, [32, 4], [1, 1, 1], &[]);
        let x = g.fake_quantized(&x, 8.0 / 127.0);
        let x = g.op("ReduceMean", &[&x], &[("axes", Attribute::Ints(&[2, 3, 4])), ("keepdims", Attribute::Int(0))]);
        g.output(&x, "logits", &[Dim::N(1), Dim::N(4)]);
        let bytes = g.bytes();
        onnx::write_model(folder.path(), 4, &[(SMALL, vec![("int8", "rgb.onnx", &bytes)])]);
        let model = Model::load(folder.path()).unwrap();
        let video = Video::new(&model, 16 + 9 * HOP, seed);
        let all = |mode| {
            let options = LoadOptions { mode, hop: 4, ..LoadOptions::default() };
            let mut network = inference::load_with(&model, &["cpu".into()], &options).unwrap().0;
            let ends = (16..=16 + 9 * HOP).step_by(4);
            let hops = ends.map(|end| video.hop(&model, network.as_ref(), end, end > 16)).collect::<Vec<_>>();
            hops.iter().map(|hop| network.step(Lane(0), hop).unwrap().logits.clone()).collect::<Vec<_>>()
        };
        let (dense, window) = (all(Mode::Dense), all(Mode::Window));
        assert_eq!(far(&dense, &window), 0.0, "seed {seed}");
        assert!(far(&dense[1..], &dense[..dense.len() - 1]) > 1e-3, "seed {seed}: always the same");
    }
}

/// The same clip on two lanes, one a hop late: neither disturbs the other.
#[test]
fn every_camera_has_states_of_its_own() {
    let model = shipped();
    let video = Video::new(&model, 14 * HOP, 3);
    for backend in usable() {
        for mode in [Mode::Window, Mode::Continuous] {
            let mut network = load(&model, backend, Precision::F32, mode);
            let alone = video.scores(&model, network.as_mut(), 64);
            network.reset(Lane(0));
            let begin = if mode == Mode::Window { 64 } else { HOP };
            let mut both = [Vec::new(), Vec::new()];
            for end in (begin..=14 * HOP).step_by(HOP) {
                for (lane, end) in [(0, end), (1, end - HOP)] {
                    if end >= begin {
                        let hop = video.hop(&model, network.as_ref(), end, end > begin);
                        let logits = network.step(Lane(lane), &hop).unwrap().logits.clone();
                        if end >= 64 {
                            both[lane].push(logits);
                        }
                    }
                }
            }
            assert_eq!(far(&both[0], &alone), 0.0, "{backend} {}", mode.name());
            assert_eq!(far(&both[1], &alone[..both[1].len()]), 0.0, "{backend} {}", mode.name());
        }
    }
}

/// A camera whose hops are run in twos for a while, and whose weaker stream is left out, goes on with the same states.
#[test]
fn a_state_goes_on_in_the_network_of_a_doubled_hop() {
    let model = shipped();
    let video = Video::new(&model, 14 * HOP, 4);
    for backend in usable() {
        let mut single = load(&model, backend, Precision::F32, Mode::Carried);
        let expected = video.scores(&model, single.as_mut(), HOP);
        single.reset(Lane(0));
        let options = LoadOptions {
            precision: Some(Precision::F32),
            mode: Mode::Carried,
            hop: 2 * HOP,
            ..LoadOptions::default()
        };
        let mut double = inference::load_with(&model, &[backend.into()], &options).unwrap().0;
        let (mut end, mut before) = (0, 1);
        for hops in [1, 1, 1, 2, 2, 1, 2, 1, 1, 2] {
            end += hops * HOP;
            if hops != before {
                let (from, to) = if hops == 2 { (&mut single, &mut double) } else { (&mut double, &mut single) };
                let state = from.take_state(Lane(0)).expect("a state");
                assert!(from.take_state(Lane(0)).is_none());
                assert!(to.put_state(Lane(0), state).is_ok());
                before = hops;
            }
            let network = if hops == 2 { double.as_mut() } else { single.as_mut() };
            let hop = video.hop(&model, network, end, true);
            let logits = network.step(Lane(0), &hop).unwrap().logits.clone();
            let difference = far(&[logits], &expected[end / HOP - 1..end / HOP]);
            assert!(difference < 1e-4, "{backend}, {end}: {difference}");
        }
        // A stream that is left out gives nothing and does not touch the other.
        let mut hop = video.hop(&model, double.as_ref(), 14 * HOP, true);
        hop.frames[0] = 0;
        let logits = double.step(Lane(1), &hop).unwrap().logits.clone();
        hop.frames[0] = double.frames(0);
        let whole = double.step(Lane(2), &hop).unwrap().logits.clone();
        assert!(logits[0].is_empty() && logits[1] == whole[1], "{backend}");
        // States of another mode are not taken for these.
        let mut other = load(&model, backend, Precision::F32, Mode::Window);
        other.step(Lane(0), &video.hop(&model, other.as_ref(), 64, false)).unwrap();
        let state = other.take_state(Lane(0)).expect("a state");
        assert!(double.put_state(Lane(0), state).is_err(), "{backend}");
    }
}

/// What can't be had is refused with what would help.
#[test]
fn a_hop_that_does_not_fit_names_the_next_that_does() {
    let model = shipped();
    for (hop, next) in [(1, "8"), (12, "16"), (20, "24")] {
        let options = LoadOptions { mode: Mode::Window, hop, ..LoadOptions::default() };
        let e = inference::load_with(&model, &["tract".into()], &options).err().unwrap();
        assert!(e.to_string().contains(&format!("--hop {next}")), "{e}");
    }
}

/// The frames that a hop takes beyond its own must be kept of a camera, or scores would be of other frames.
#[test]
fn a_hop_that_takes_more_frames_than_are_kept_names_the_largest_that_does_not() {
    let model = shipped();
    for mode in [Mode::Carried, Mode::Continuous] {
        for hop in [64, 56] {
            let options = LoadOptions { mode, hop, ..LoadOptions::default() };
            let loaded = inference::load_with(&model, &["tract".into()], &options).map(|_| ());
            for result in [inference::check_mode(&model, mode, hop), loaded] {
                if hop == 56 {
                    result.unwrap();
                    continue;
                }
                let e = result.unwrap_err();
                assert_eq!(e.kind(), Kind::Config, "{e}");
                assert!(e.to_string().contains("takes 70 frames") && e.to_string().contains("(--hop 56)"), "{e}");
            }
        }
    }
}

/// A clip's hops see all the frames that they take, also where those are more than the model's window.
#[test]
fn a_clip_s_scores_are_the_same_at_every_hop() {
    let folder = tempfile::tempdir().unwrap();
    let mut g = onnx::Graph::new(3);
    let x = g.input("input", DataType::Float, &[1, 3, 16, 8, 8].map(Dim::N));
    let x = g.convolution(&x, [3, 4], [5, 3, 3], &[("pads", Attribute::Ints(&[2, 1, 1, 2, 1, 1]))]);
    let x = g.relu(&x);
    let x = g.op("ReduceMean", &[&x], &[("axes", Attribute::Ints(&[2, 3, 4])), ("keepdims", Attribute::Int(0))]);
    g.output(&x, "logits", &[Dim::N(1), Dim::N(4)]);
    onnx::write_model(folder.path(), 4, &[(SMALL, vec![("f32", "rgb.onnx", &g.bytes())])]);
    let model = Model::load(folder.path()).unwrap();
    let mut random = Random(9);
    let mut frame = |number| {
        let level = random.below(200);
        let rgb = (0..3 * 8 * 8).map(|_| (level + random.below(50)) as u8).collect();
        Frame { number, still: 0, views: vec![View { rgb, flow: Vec::new() }] }
    };
    let clip = Clip { frames: (0..64).map(&mut frame).collect(), cuts: Vec::new() };
    let scores = |hop: usize| {
        let mut network = load_at(&model, "tract", Mode::Carried, hop);
        assert!(hop == 8 || network.frames(0) > 16);
        clip.windows(&model, network.as_mut(), hop).unwrap()
    };
    let (small, large) = (scores(8), scores(16));
    let small: Vec<_> = small.into_iter().step_by(2).collect();
    assert!(far(&small, &large) < 1e-5, "{small:?} {large:?}");
    assert!(far(&small[1..], &small[..small.len() - 1]) > 0.01);
}

/// A difference to what is no number is not 0.
#[test]
fn compile_refuses_scores_that_are_no_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let mut g = onnx::Graph::new(4);
    let x = g.input("input", DataType::Float, &[1, 3, 16, 8, 8].map(Dim::N));
    let x = g.convolution(&x, [3, 4], [3, 3, 3], &[("pads", Attribute::Ints(&[1; 6]))]);
    let damaged = g.floats(&[1], &[f32::NAN]);
    let x = g.op("Mul", &[&x, &damaged], &[]);
    let x = g.op("ReduceMean", &[&x], &[("axes", Attribute::Ints(&[2, 3, 4])), ("keepdims", Attribute::Int(0))]);
    g.output(&x, "logits", &[Dim::N(1), Dim::N(4)]);
    let model = folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    onnx::write_model(&model, 4, &[(SMALL, vec![("f32", "rgb.onnx", &g.bytes())])]);
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_actiond"))
        .args(["compile", "model", "--mode", "window", "--hop", "8", "--backend", "tract"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("rgb.onnx: a score of it is NaN"), "{told}");
}
