//! One suite for every backend: the same models and hops go through each backend that this machine has, and the numbers
//! are compared. What is not here is said and skipped; tract is always here, so there is always something to compare.

#[path = "common/onnx.rs"]
mod onnx;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    fs,
    path::Path,
    sync::OnceLock,
    time::Instant,
};

use actiond::{
    config::Mode,
    error::Kind,
    inference::{self, Hop, Lane, LoadOptions, Network, Tensor},
    model::{Dtype, Model, Precision},
};
use onnx::{
    Attribute::{Int, Ints, Text},
    Dim::{N, T},
    Graph, Random, write_model,
};
use tempfile::TempDir;
use tract_onnx::pb::tensor_proto::DataType;

const LABELS: usize = 13;
const F32: LoadOptions = LoadOptions { precision: Some(Precision::F32), threads: None, mode: Mode::Dense, hop: 8 };

/// The backends that can be used here, the last of them tract.
fn backends() -> Vec<&'static str> {
    static USABLE: OnceLock<Vec<&str>> = OnceLock::new();
    let look = || {
        let all = inference::available();
        for missing in all.iter().filter(|a| !a.usable) {
            eprintln!("skipped: {} ({})", missing.name, missing.found);
        }
        all.iter().filter(|a| a.usable).map(|a| a.name).collect()
    };
    USABLE.get_or_init(look).clone()
}

fn load(model: &Model, backend: &str, options: &LoadOptions) -> Box<dyn Network> {
    let (network, taken) = inference::load_with(model, &[backend.into()], options).unwrap();
    assert_eq!(taken, backend);
    network
}

/// Noise for a hop of these many frames (each stream's own where it is None).
fn noise(model: &Model, frames: Option<usize>, random: &mut Random) -> Hop {
    let streams = &model.manifest.streams;
    let frames: Vec<usize> = streams.iter().map(|s| frames.unwrap_or(s.frames)).collect();
    let inputs = streams.iter().zip(&frames).map(|(s, &n)| {
        let elements = s.shape(n).iter().product();
        match s.dtype {
            Dtype::F32 => Tensor::F32(random.floats(elements)),
            Dtype::U8 => Tensor::U8((0..elements).map(|_| random.bits() as u8).collect()),
        }
    });
    Hop { inputs: inputs.collect(), packed: vec![None; frames.len()], frames, follows: false }
}

fn top5(logits: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    order.truncate(5);
    order
}

fn max_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Runs `steps` on every backend in f32 and demands of each the numbers of the first.
fn same_everywhere(what: &str, model: &Model, steps: &[(Lane, Hop)]) {
    let run = |backend: &str| -> Vec<Vec<Vec<f32>>> {
        let mut network = load(model, backend, &F32);
        let step = |(lane, hop): &(Lane, Hop)| network.step(*lane, hop).unwrap().logits.clone();
        steps.iter().map(step).collect()
    };
    let reference = run("tract");
    for (logits, (_, hop)) in reference.iter().zip(steps) {
        assert_eq!(logits.len(), hop.inputs.len());
        assert!(logits.iter().all(|l| l.len() == LABELS && l.iter().all(|v| v.is_finite())));
        // Numbers that hardly differ would prove little.
        assert!(logits.iter().flatten().any(|v| v.abs() > 0.02), "{what}: {logits:?}");
    }
    for backend in backends().into_iter().filter(|b| *b != "tract") {
        let mut worst = 0f32;
        for (step, (ours, theirs)) in run(backend).iter().zip(&reference).enumerate() {
            let difference = max_difference(ours, theirs);
            assert!(difference < 1e-3, "{what}, {backend}, step {step}: differs from tract by {difference}");
            for (a, b) in ours.iter().zip(theirs) {
                assert_eq!(top5(a), top5(b), "{what}, {backend}, step {step}");
            }
            worst = worst.max(difference);
        }
        eprintln!("{what}: {backend} differs from tract by {worst:.1e}");
    }
}

/// An inception-like network: asymmetric pads, SAME_UPPER, max pools, branches and their concatenation, an average pool,
/// a convolution as head, the mean over time.
fn inception(channels: usize, seed: u64, quantized: bool, time: onnx::Dim) -> Vec<u8> {
    let mut g = Graph::new(seed);
    g.quantized = quantized;
    let same = || ("auto_pad", Text("SAME_UPPER"));
    let x = g.input("input", DataType::Float, &[N(1), N(channels as i64), time, N(24), N(20)]);
    let stem = [("strides", Ints(&[2, 2, 2])), ("pads", Ints(&[2, 2, 2, 3, 3, 3]))];
    let x = g.convolution(&x, [channels, 8], [7, 7, 7], &stem);
    let x = g.relu(&x);
    let x = g.op("MaxPool", &[&x], &[("kernel_shape", Ints(&[1, 3, 3])), ("strides", Ints(&[1, 2, 2])), same()]);
    let a = g.convolution(&x, [8, 6], [1, 1, 1], &[]);
    let a = g.relu(&a);
    let b = g.convolution(&x, [8, 4], [1, 1, 1], &[]);
    let b = g.relu(&b);
    let b = g.convolution(&b, [4, 6], [3, 3, 3], &[same()]);
    let b = g.relu(&b);
    let c = g.op("MaxPool", &[&x], &[("kernel_shape", Ints(&[3, 3, 3])), ("strides", Ints(&[1, 1, 1])), same()]);
    let c = g.convolution(&c, [8, 4], [1, 1, 1], &[]);
    let c = g.relu(&c);
    let x = g.op("Concat", &[&a, &b, &c], &[("axis", Int(1))]);
    let pool = [("kernel_shape", Ints(&[2, 2, 2])), ("strides", Ints(&[2, 2, 2])), same()];
    let x = g.op("MaxPool", &[&x], &pool);
    let x = g.op("AveragePool", &[&x], &[("kernel_shape", Ints(&[2, 3, 3])), ("strides", Ints(&[1, 1, 1]))]);
    let x = g.convolution(&x, [16, LABELS], [1, 1, 1], &[]);
    let x = g.op("ReduceMean", &[&x], &[("axes", Ints(&[2, 3, 4])), ("keepdims", Int(0))]);
    g.output(&x, "logits", &[N(1), N(LABELS as i64)]);
    g.bytes()
}

fn stream(name: &str, kind: &str, frames: usize, layout: &str, more: &str) -> String {
    format!(
        "name = \"{name}\"\nkind = \"{kind}\"\nframes = {frames}\nsize = [20, 24]\nfit = \"squeeze\"\n\
         layout = \"{layout}\"\ninput = \"input\"\noutput = \"logits\"\n{more}"
    )
}

fn model(labels: usize, streams: &[onnx::Stream]) -> (TempDir, Model) {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), labels, streams);
    let model = Model::load(folder.path()).unwrap();
    (folder, model)
}

#[test]
fn two_streams_of_3d_convolutions_at_several_lengths() {
    let (rgb, flow) = (inception(3, 1, false, T("T")), inception(2, 2, false, T("frames")));
    let (_folder, model) = model(
        LABELS,
        &[
            (&stream("rgb", "rgb", 16, "NCTHW", ""), vec![("f32", "rgb.onnx", &rgb)]),
            (&stream("flow", "flow", 16, "NCTHW", ""), vec![("f32", "flow.onnx", &flow)]),
        ],
    );
    let mut random = Random(3);
    // The window, then whole clips: longer, odd, longer again, and the window once more.
    let lengths = [None, Some(24), Some(31), Some(24), None];
    let steps: Vec<_> = lengths.map(|n| (Lane(0), noise(&model, n, &mut random))).into();
    same_everywhere("3D convolutions", &model, &steps);
    for backend in backends() {
        let network = load(&model, backend, &F32);
        assert!(network.any_length(0) && network.any_length(1));
        assert_eq!(network.precision(), [Precision::F32; 2]);
    }
}

#[test]
fn a_fixed_time_axis_takes_its_own_length_and_says_so_for_another() {
    let rgb = inception(3, 1, false, N(16));
    let (_folder, model) = model(LABELS, &[(&stream("rgb", "rgb", 16, "NCTHW", ""), vec![("f32", "rgb.onnx", &rgb)])]);
    let mut random = Random(3);
    same_everywhere("a fixed time axis", &model, &[(Lane(0), noise(&model, None, &mut random))]);
    for backend in backends() {
        let mut network = load(&model, backend, &F32);
        assert!(!network.any_length(0));
        let e = network.step(Lane(0), &noise(&model, Some(24), &mut random)).unwrap_err().to_string();
        assert!(e.contains("stream `rgb`: takes exactly 16 frames") && e.contains("got 24"), "{e}");
        // A refused hop leaves the network as it was.
        network.step(Lane(0), &noise(&model, None, &mut random)).unwrap();
    }
}

#[test]
fn a_hop_that_does_not_fit_its_stream_is_an_error() {
    let rgb = inception(3, 1, false, T("T"));
    let (_folder, model) = model(LABELS, &[(&stream("rgb", "rgb", 16, "NCTHW", ""), vec![("f32", "rgb.onnx", &rgb)])]);
    for backend in backends() {
        let mut network = load(&model, backend, &F32);
        for (frames, input) in [
            (vec![16], Tensor::F32(vec![0.0; 17])),
            (vec![0], Tensor::F32(vec![])),
            (vec![16], Tensor::U8(vec![0; 3 * 16 * 24 * 20])),
            (vec![16, 16], Tensor::F32(vec![0.0; 3 * 16 * 24 * 20])),
        ] {
            let e = network
                .step(Lane(0), &Hop { packed: vec![None; frames.len()], frames, inputs: vec![input], follows: false })
                .unwrap_err();
            assert_eq!(e.kind(), Kind::Internal, "{e}");
        }
    }
}

/// Two states of their own kinds: an LSTM's h and c, after a plain cell's h' = tanh(Wx + Uh).
fn recurrent() -> Vec<u8> {
    const H: usize = 12;
    let mut g = Graph::new(5);
    let x = g.input("input", DataType::Float, &[N(1), N(2), N(24), N(20)]);
    // In another order than the manifest's, and between them: names count, not places.
    let c = g.input("c", DataType::Float, &[N(1), N(1), N(H as i64)]);
    let plain = g.input("plain", DataType::Float, &[N(1), N(H as i64)]);
    let h = g.input("h", DataType::Float, &[N(1), N(1), N(H as i64)]);
    let flat = g.op("Flatten", &[&x], &[("axis", Int(1))]);
    let (w, u) = (g.weights(&[960, H]), g.weights(&[H, H]));
    let wx = g.op("MatMul", &[&flat, &w], &[]);
    let uh = g.op("MatMul", &[&plain, &u], &[]);
    let sum = g.op("Add", &[&wx, &uh], &[]);
    let next = g.op("Tanh", &[&sum], &[]);
    let shape = g.ints(&[1, 1, H as i64]);
    let sequence = g.op("Reshape", &[&next, &shape], &[]);
    let (w, r) = (g.weights(&[1, 4 * H, H]), g.weights(&[1, 4 * H, H]));
    let bias = g.random.floats(8 * H);
    let b = g.floats(&[1, 8 * H], &bias);
    let inputs = [sequence.as_str(), &w, &r, &b, "", &h, &c];
    g.op_into("LSTM", &inputs, &["y", "y_h", "y_c"], &[("hidden_size", Int(H as i64))]);
    let flat = g.op("Flatten", &["y_h"], &[("axis", Int(1))]);
    let head = g.weights(&[H, LABELS]);
    let logits = g.op("MatMul", &[&flat, &head], &[]);
    g.output("y_c", "next c", &[N(1), N(1), N(H as i64)]);
    g.output(&logits, "logits", &[N(1), N(LABELS as i64)]);
    g.output(&next, "next plain", &[N(1), N(H as i64)]);
    g.output("y_h", "next h", &[N(1), N(1), N(H as i64)]);
    g.bytes()
}

const STATES: &str = "state = [{ input = \"h\", output = \"next h\", shape = [1, 1, 12] }, \
     { input = \"plain\", output = \"next plain\", shape = [1, 12] }, \
     { input = \"c\", output = \"next c\", shape = [1, 1, 12] }]";

#[test]
fn state_is_carried_for_each_lane_and_forgotten_on_reset() {
    let bytes = recurrent();
    let (_folder, model) =
        model(LABELS, &[(&stream("flow", "flow", 1, "NCHW", STATES), vec![("f32", "flow.onnx", &bytes)])]);
    let mut random = Random(6);
    let hops: Vec<Hop> = (0..4).map(|_| noise(&model, None, &mut random)).collect();
    let steps: Vec<_> = [(0, 0), (1, 1), (0, 2), (0, 1), (1, 3), (1, 0)]
        .map(|(lane, hop): (usize, usize)| (Lane(lane), hops[hop].clone()))
        .into();
    same_everywhere("recurrent state", &model, &steps);

    for backend in backends() {
        let mut network = load(&model, backend, &F32);
        let mut step = |lane, hop: usize, reset: bool| {
            if reset {
                network.reset(Lane(lane));
            }
            network.step(Lane(lane), &hops[hop]).unwrap().logits[0].clone()
        };
        let alone = [step(0, 0, false), step(0, 1, false), step(0, 2, false)];
        assert_ne!(step(0, 2, false), alone[2], "{backend}: the state was not carried");
        // The same three hops, on a fresh lane and on the first after a reset, interleaved.
        let mut apart = Vec::new();
        for hop in 0..3 {
            apart.push((step(7, hop, false), step(0, hop, hop == 0)));
        }
        for (alone, (fresh, reset)) in alone.iter().zip(&apart) {
            assert_eq!(alone, fresh, "{backend}: lanes are mixed up");
            assert_eq!(alone, reset, "{backend}: the reset forgot nothing");
        }
    }
}

#[test]
fn a_stream_of_rgb_and_flow_with_channels_last() {
    let mut g = Graph::new(8);
    let x = g.input("input", DataType::Float, &[N(1), T("T"), N(24), N(20), N(7)]);
    let x = g.op("Transpose", &[&x], &[("perm", Ints(&[0, 4, 1, 2, 3]))]);
    let x = g.convolution(&x, [7, 8], [3, 3, 3], &[("strides", Ints(&[2, 2, 2])), ("auto_pad", Text("SAME_UPPER"))]);
    let x = g.relu(&x);
    let x = g.op("GlobalAveragePool", &[&x], &[]);
    let x = g.convolution(&x, [8, LABELS], [1, 1, 1], &[]);
    let x = g.op("Flatten", &[&x], &[("axis", Int(1))]);
    g.output(&x, "logits", &[N(1), N(LABELS as i64)]);
    let bytes = g.bytes();
    let (_folder, model) =
        model(LABELS, &[(&stream("both", "rgb+flow", 8, "NTHWC", "stack = 2"), vec![("f32", "both.onnx", &bytes)])]);
    let mut random = Random(9);
    let steps: Vec<_> = [None, Some(13)].map(|n| (Lane(0), noise(&model, n, &mut random))).into();
    same_everywhere("RGB with flow", &model, &steps);
}

#[test]
fn bytes_as_input() {
    let mut g = Graph::new(10);
    let x = g.input("input", DataType::Uint8, &[N(1), N(8), N(3), N(24), N(20)]);
    let x = g.op("Cast", &[&x], &[("to", Int(DataType::Float as i64))]);
    let (scale, one) = (g.floats(&[], &[2.0 / 255.0]), g.floats(&[], &[1.0]));
    let x = g.op("Mul", &[&x, &scale], &[]);
    let x = g.op("Sub", &[&x, &one], &[]);
    let x = g.op("Transpose", &[&x], &[("perm", Ints(&[0, 2, 1, 3, 4]))]);
    let x = g.convolution(&x, [3, 8], [3, 5, 5], &[("strides", Ints(&[1, 2, 2]))]);
    let x = g.relu(&x);
    let x = g.op("ReduceMean", &[&x], &[("axes", Ints(&[2, 3, 4])), ("keepdims", Int(1))]);
    let x = g.convolution(&x, [8, LABELS], [1, 1, 1], &[]);
    let shape = g.ints(&[LABELS as i64]);
    let x = g.op("Reshape", &[&x, &shape], &[]);
    // Logits without a batch axis.
    g.output(&x, "logits", &[N(LABELS as i64)]);
    let bytes = g.bytes();
    let (_folder, model) =
        model(LABELS, &[(&stream("rgb", "rgb", 8, "NTCHW", "dtype = \"u8\""), vec![("f32", "rgb.onnx", &bytes)])]);
    let mut random = Random(11);
    let steps: Vec<_> = (0..2).map(|_| (Lane(0), noise(&model, None, &mut random))).collect();
    same_everywhere("u8 input", &model, &steps);
}

#[test]
fn each_backend_takes_the_precision_it_is_good_at_and_the_user_may_overrule_it() {
    let (f32, int8) = (inception(3, 12, false, T("T")), inception(3, 12, true, T("T")));
    let files = vec![("f32", "rgb.onnx", f32.as_slice()), ("int8", "rgb.int8.onnx", &int8)];
    let (_folder, both) = model(LABELS, &[(&stream("rgb", "rgb", 16, "NCTHW", ""), files)]);
    let (_folder, only) =
        model(LABELS, &[(&stream("rgb", "rgb", 16, "NCTHW", ""), vec![("int8", "rgb.int8.onnx", &int8)])]);
    let hop = noise(&both, None, &mut Random(13));
    let mut reference: Option<Vec<Vec<f32>>> = None;
    for backend in backends().into_iter().rev() {
        let chosen = load(&both, backend, &LoadOptions::default()).precision()[0];
        let expected = match backend {
            "openvino" if !inference::onnxruntime::adds_bytes_exactly() => Precision::F32,
            "openvino" | "tensorrt" => Precision::Int8,
            _ => Precision::F32,
        };
        assert_eq!(chosen, expected, "{backend}");
        if backend == "cuda" {
            continue;
        }
        if backend == "openvino" && !inference::onnxruntime::adds_bytes_exactly() {
            eprintln!("skipped: openvino in int8, as this CPU has no VNNI and its sums saturate");
            continue;
        }
        let asked = LoadOptions { precision: Some(Precision::Int8), threads: Some(1), ..F32 };
        let mut network = load(&both, backend, &asked);
        assert_eq!(network.precision(), [Precision::Int8]);
        assert_eq!(load(&only, backend, &LoadOptions::default()).precision(), [Precision::Int8]);
        let logits = network.step(Lane(0), &hop).unwrap().logits.clone();
        let reference = reference.get_or_insert_with(|| logits.clone());
        let difference = max_difference(&logits, reference);
        eprintln!("int8: {backend} differs from tract by {difference:.1e}");
        // Integers round at slightly different places; a wrong scale or zero point is off by much more.
        assert!(difference < 0.05, "{backend}: {difference}");

        let e = inference::load_with(&only, &[backend.into()], &F32).err().unwrap().to_string();
        assert!(e.contains("stream `rgb`") && e.contains("f32") && e.contains("int8"), "{e}");
    }
}

#[test]
fn a_graph_that_is_not_what_the_manifest_says_is_one_clear_sentence_on_every_backend() {
    let good = inception(3, 1, false, T("T"));
    let state = "state = [{ input = \"h\", output = \"next\", shape = [1, 4] }]";
    let half = &good[..good.len() / 2];
    let wrong_size = stream("rgb", "rgb", 16, "NCTHW", "").replace("[20, 24]", "[24, 24]");
    let no_input = stream("rgb", "rgb", 16, "NCTHW", "").replace("\"input\"", "\"picture\"");
    let no_output = stream("rgb", "rgb", 16, "NCTHW", "").replace("\"logits\"", "\"scores\"");
    let rgb = stream("rgb", "rgb", 16, "NCTHW", "");
    let stateful = recurrent();
    let cases: Vec<(&str, String, usize, &[u8], &str)> = vec![
        ("other input name", no_input, LABELS, &good, "the graph has no input `picture`; it has `input`"),
        ("other output name", no_output, LABELS, &good, "the graph has no output `scores`; it has `logits`"),
        ("other labels", rgb.clone(), 12, &good, "output `logits` has shape [1, 13], but there are 12 labels"),
        ("other size", wrong_size, LABELS, &good, "shape [1, 3, T, 24, 20] in the graph and [1, 3, 16, 24, 24] by the"),
        ("other kind", stream("rgb", "flow", 16, "NCTHW", ""), LABELS, &good, "[1, 2, 16, 24, 20] by the manifest"),
        ("other layout", stream("rgb", "rgb", 16, "NTHWC", ""), LABELS, &good, "[1, 16, 24, 20, 3] by the manifest"),
        (
            "other type",
            stream("rgb", "rgb", 16, "NCTHW", "dtype = \"u8\""),
            LABELS,
            &good,
            "is f32 in the graph and uint8",
        ),
        ("no such state", stream("rgb", "rgb", 16, "NCTHW", state), LABELS, &good, "the graph has no input `h`"),
        ("state left out", stream("f", "flow", 1, "NCHW", ""), LABELS, &stateful, "feeds the graph's input `c`"),
        ("text", rgb.clone(), LABELS, b"this is no model", "is not an ONNX file"),
        ("nothing", rgb.clone(), LABELS, b"", "is not an ONNX file"),
        ("cut in the middle", rgb.clone(), LABELS, half, "is not an ONNX file"),
    ];
    for (what, stream, labels, bytes, sentence) in &cases {
        let (_folder, model) = model(*labels, &[(stream, vec![("f32", "net.onnx", bytes)])]);
        for backend in backends() {
            let e = inference::load_with(&model, &[backend.into()], &F32).err().unwrap_or_else(|| panic!("{what}"));
            let text = e.to_string();
            assert_eq!(e.kind(), Kind::Model, "{what}, {backend}: {text}");
            assert!(text.contains(sentence) && text.contains("net.onnx"), "{what}, {backend}: {text}");
            assert_eq!(text.lines().count(), 1, "{what}, {backend}: {text}");
        }
    }
}

#[test]
fn a_damaged_graph_with_the_right_checksum_never_takes_the_process_down() {
    let good = inception(3, 1, false, T("T"));
    let mut random = Random(14);
    let folder = tempfile::tempdir().unwrap();
    let rgb = stream("rgb", "rgb", 16, "NCTHW", "");
    // The nodes are at the front; the weights behind them are numbers, of which every value is a good one.
    let nodes = good.len() - 40_000.min(good.len() / 2);
    for _ in 0..30 {
        let mut bytes = good.clone();
        let at = random.below(nodes.min(2500));
        bytes[at] ^= 1 << random.below(8);
        write_model(folder.path(), LABELS, &[(&rgb, vec![("f32", "net.onnx", &bytes)])]);
        let model = Model::load(folder.path()).unwrap();
        for backend in backends().into_iter().filter(|b| ["cpu", "tract"].contains(b)) {
            if let Err(e) = inference::load_with(&model, &[backend.into()], &F32) {
                assert_eq!(e.kind(), Kind::Model, "{backend}: {e}");
            }
        }
    }
}

#[test]
fn the_order_is_kept_and_no_backend_stands_behind_the_last() {
    let rgb = inception(3, 1, false, T("T"));
    let (_folder, model) = model(LABELS, &[(&stream("rgb", "rgb", 16, "NCTHW", ""), vec![("f32", "rgb.onnx", &rgb)])]);
    let available = backends();
    for first in inference::ORDER {
        let (_, taken) = inference::load(&model, &[first.into(), "tract".into()]).unwrap();
        assert_eq!(taken, if available.contains(&first) { first } else { "tract" });
        if !available.contains(&first) {
            let e = inference::load(&model, &[first.into()]).err().unwrap();
            assert_eq!(e.kind(), Kind::Unavailable, "{e}");
            assert!(e.to_string().contains(&format!("{first}: ")), "{e}");
        }
    }
    let (_, taken) = inference::load(&model, &[]).unwrap();
    assert_eq!(taken, available[0]);
    let e = inference::load(&model, &["openvinno".into()]).err().unwrap();
    assert_eq!(e.kind(), Kind::Config);
    assert!(e.to_string().contains("did you mean `openvino`"), "{e}");
}

#[test]
fn the_shipped_model_gives_the_same_logits_everywhere() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default");
    if !folder.join("model.toml").exists() {
        eprintln!("skipped: there is no models/default");
        return;
    }
    let model = Model::load(&folder).unwrap();
    let mut random = Random(15);
    let mut steps = vec![(Lane(0), noise(&model, None, &mut random))];
    if load(&model, "tract", &F32).any_length(0) {
        steps.push((Lane(0), noise(&model, Some(79), &mut random)));
    }
    let labels = model.labels.len();
    assert_eq!(labels, LABELS, "the suite counts on {LABELS} labels");
    same_everywhere("models/default", &model, &steps);
}

/// What ONNX Runtime allocates is its own affair, and its arena's; this side of it, a step needs nothing new.
#[test]
fn a_step_on_onnx_runtime_allocates_nothing_after_the_first() {
    let bytes = recurrent();
    let rgb = inception(3, 1, false, T("T"));
    let (_folder, model) = model(
        LABELS,
        &[
            (&stream("flow", "flow", 1, "NCHW", STATES), vec![("f32", "flow.onnx", &bytes)]),
            (&stream("rgb", "rgb", 16, "NCTHW", ""), vec![("f32", "rgb.onnx", &rgb)]),
        ],
    );
    let hop = noise(&model, None, &mut Random(17));
    for backend in backends().into_iter().filter(|b| *b != "tract") {
        let mut network = load(&model, backend, &F32);
        network.step(Lane(0), &hop).unwrap();
        let before = ALLOCATIONS.with(Cell::get);
        for _ in 0..5 {
            network.step(Lane(0), &hop).unwrap();
        }
        assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0, "{backend}");
    }
}

/// Counts what this thread asks of Rust's allocator.
struct Counting;

thread_local!(static ALLOCATIONS: Cell<usize> = const { Cell::new(0) });

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to the system's allocator as it came; counting touches a plain cell of the thread.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        unsafe { System.dealloc(at, layout) }
    }
}

/// Not a test: what inference costs here, for comments and reports. `cargo test --release --test backends -- --ignored
/// --nocapture`, on a machine that does nothing else.
#[test]
#[ignore = "a measurement"]
fn times_of_the_shipped_model() {
    let model = Model::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default")).unwrap();
    let hop = noise(&model, None, &mut Random(16));
    let median = |mut run: Box<dyn FnMut() + '_>| {
        let mut times: Vec<f64> = (0..15)
            .map(|_| {
                let start = Instant::now();
                run();
                start.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    for backend in backends() {
        for precision in [Precision::F32, Precision::Int8] {
            let start = Instant::now();
            let mut network = load(&model, backend, &LoadOptions { precision: Some(precision), ..F32 });
            let loaded = start.elapsed().as_secs_f64();
            let ms = median(Box::new(|| {
                network.step(Lane(0), &hop).unwrap();
            }));
            eprintln!("{backend} {}: both streams {ms:.1} ms, loaded in {loaded:.2} s", precision.name());
        }
    }
    if backends().contains(&"cpu") {
        // Streams in turn with two threads each, against side by side with one thread each.
        let single = |i: usize| {
            let mut one = model.clone();
            one.manifest.streams = vec![model.manifest.streams[i].clone()];
            let hop = Hop {
                frames: vec![hop.frames[i]],
                packed: vec![None],
                inputs: vec![hop.inputs[i].clone()],
                follows: false,
            };
            (load(&one, "cpu", &LoadOptions { threads: Some(1), ..F32 }), hop)
        };
        let (mut a, mut b) = (single(0), single(1));
        let ms = median(Box::new(|| {
            std::thread::scope(|s| {
                s.spawn(|| a.0.step(Lane(0), &a.1).unwrap().logits.len());
                b.0.step(Lane(0), &b.1).unwrap();
            });
        }));
        eprintln!("cpu f32: both streams side by side, one thread each: {ms:.1} ms");
    }
}

#[test]
fn a_model_that_was_changed_since_it_was_installed_is_refused() {
    let rgb = inception(3, 1, false, T("T"));
    let folder = tempfile::tempdir().unwrap();
    write_model(
        folder.path(),
        LABELS,
        &[(&stream("rgb", "rgb", 16, "NCTHW", ""), vec![("f32", "rgb.onnx", rgb.as_slice())])],
    );
    let mut bytes = rgb.clone();
    bytes[rgb.len() / 2] ^= 1;
    fs::write(folder.path().join("rgb.onnx"), bytes).unwrap();
    let e = Model::load(folder.path()).unwrap_err();
    assert_eq!(e.kind(), Kind::Model);
    assert!(e.to_string().contains("rgb.onnx is not the file that its manifest describes"), "{e}");
}
