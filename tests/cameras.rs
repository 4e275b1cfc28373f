//! Several cameras in one daemon, as a user runs it: cameras that share a source, and more cameras than the machine can
//! take.

#[path = "common/onnx.rs"]
#[allow(dead_code)]
mod onnx;
#[path = "common/rtsp.rs"]
#[allow(dead_code)]
mod rtsp;

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use actiond::{
    inference::{self, Hop, Lane, LoadOptions},
    model::Model,
};
use onnx::{Attribute, Dim, Graph, write_model};
use rtsp::Server;
use serde_json::Value;
use tract_onnx::pb::tensor_proto::DataType;

const ACTIOND: &str = env!("CARGO_BIN_EXE_actiond");

fn stream(name: &str, size: usize) -> String {
    format!(
        "name = \"{name}\"\nkind = \"rgb\"\nframes = 16\nsize = [{size}, {size}]\nfit = \"squeeze\"\nlayout = \"NCTHW\"\n\
         input = \"input\"\noutput = \"logits\"\ndtype = \"f32\"\nrange = [-1.0, 1.0]"
    )
}

/// A model of two streams with something to compute: about half a GMAC a window each.
fn heavy(folder: &Path) {
    let network = |seed| {
        let mut g = Graph::new(seed);
        let mut x = g.input("input", DataType::Float, &[1, 3, 16, 32, 32].map(Dim::N));
        let pads = [1; 6];
        for channels in [[3, 16], [16, 64]] {
            x = g.convolution(&x, channels, [3; 3], &[("pads", Attribute::Ints(&pads))]);
            x = g.relu(&x);
        }
        let axes = [2, 3, 4];
        x = g.op("ReduceMean", &[&x], &[("axes", Attribute::Ints(&axes)), ("keepdims", Attribute::Int(1))]);
        x = g.convolution(&x, [64, 2], [1; 3], &[]);
        let shape = g.ints(&[1, 2]);
        x = g.op("Reshape", &[&x, &shape], &[]);
        g.output(&x, "logits", &[Dim::N(1), Dim::N(2)]);
        g.bytes()
    };
    let (one, two) = (network(1), network(2));
    write_model(
        folder,
        2,
        &[(&stream("one", 32), vec![("f32", "one.onnx", &one)]), (&stream("two", 32), vec![("f32", "two.onnx", &two)])],
    );
}

/// A picture that is white on the left and black on the right, for `seconds`.
fn halves(path: &Path, seconds: u32) {
    let filter = format!("color=black:s=64x48:r=25:d={seconds},drawbox=x=0:y=0:w=32:h=48:color=white:t=fill");
    let codec = ["-c:v", "libx264", "-preset", "ultrafast", "-g", "25", "-pix_fmt", "yuv420p"];
    let made = Command::new("ffmpeg")
        .args(["-v", "error", "-y", "-f", "lavfi", "-i", &filter])
        .args(if path.extension().is_some_and(|e| e == "mp4") { &codec[..] } else { &["-pix_fmt", "yuv420p"] })
        .arg(path)
        .output()
        .unwrap();
    assert!(made.status.success(), "ffmpeg: {}", String::from_utf8_lossy(&made.stderr));
}

/// A camera of each half of the source, and one of the whole.
fn config(folder: &Path, source: &str) {
    let camera = |id: &str, region: &str| format!("[[camera]]\nid = \"{id}\"\nsource = \"{source}\"\n{region}\n");
    let text = camera("left", "region = [0.0, 0.0, 0.45, 1.0]") + &camera("right", "region = [0.55, 0.0, 0.45, 1.0]");
    let text = format!("[model]\npath = \"model\"\nbackend = [\"tract\"]\n{text}[journal]\npath = \"journal\"\n");
    fs::write(folder.join("actiond.toml"), text).unwrap();
}

fn events(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("journal/events.jsonl")).unwrap_or_default();
    text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
}

fn of<'e>(events: &'e [Value], camera: &str) -> Vec<&'e Value> {
    events.iter().filter(|e| e["camera"] == camera).collect()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What the log tells of a camera at the end.
fn tally<'t>(log: &'t str, camera: &str) -> &'t str {
    log.lines().find(|l| l.contains(&format!("camera {camera}: ")) && l.contains("pictures in")).unwrap_or_default()
}

#[test]
fn cameras_of_one_file_share_its_decoder_and_each_sees_its_region() {
    let folder = tempfile::tempdir().unwrap();
    onnx::write_brightness(&folder.path().join("model"));
    halves(&folder.path().join("halves.mp4"), 20);
    config(folder.path(), "halves.mp4");
    let run = Command::new(ACTIOND).args(["run", "--until-end"]).arg(folder.path().join("actiond.toml")).output();
    let run = run.unwrap();
    let log = stderr(&run);
    assert!(run.status.success(), "{log}");
    assert_eq!(log.lines().filter(|l| l.contains(": 64x48 from")).count(), 1, "opened once: {log}");
    let events = events(folder.path());
    for (camera, label) in [("left", "label 0"), ("right", "label 1")] {
        let own = of(&events, camera);
        let phases: Vec<_> = own.iter().map(|e| (e["phase"].as_str().unwrap(), e["label"].as_str().unwrap())).collect();
        // Opened at once, told again every 5 s, and closed at the end.
        let expected = [("start", label), ("update", label), ("update", label), ("update", label), ("end", label)];
        assert_eq!(phases, expected, "{camera}");
        assert_eq!((own[4]["first_frame"].as_u64(), own[4]["last_frame"].as_u64()), (Some(0), Some(499)));
        // A recording loses nothing, however many look at it.
        let tally = tally(&log, camera);
        assert!(tally.contains("500 pictures in") && tally.contains("500 frames, 0 of them repeats"), "{tally}");
        let none = "62 hops, 0 more left out as nothing moved, 0 frames in none; 0 hops left out";
        assert!(tally.contains(none), "{tally}");
    }
}

#[test]
fn cameras_of_one_rtsp_stream_share_one_connection() {
    let folder = tempfile::tempdir().unwrap();
    onnx::write_brightness(&folder.path().join("model"));
    let clip = folder.path().join("halves.mp4");
    halves(&clip, 60);
    let clients = folder.path().join("clients");
    let server = Server::start(&["--clients", clients.to_str().unwrap(), clip.to_str().unwrap()]);
    config(folder.path(), &server.address("clip"));
    let mut daemon = Command::new(ACTIOND)
        .arg("run")
        .arg(folder.path().join("actiond.toml"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let enough = |events: &[Value]| ["left", "right"].iter().all(|camera| of(events, camera).len() >= 2);
    while !enough(&events(folder.path())) && began.elapsed() < Duration::from_secs(40) {
        thread::sleep(Duration::from_millis(200));
    }
    let stopped = Command::new("kill").arg(daemon.id().to_string()).status().unwrap();
    assert!(stopped.success() && daemon.wait().unwrap().success());
    let events = events(folder.path());
    for (camera, label) in [("left", "label 0"), ("right", "label 1")] {
        let own = of(&events, camera);
        assert!(own.len() >= 3 && own.iter().all(|e| e["label"] == label), "{camera}: {events:?}");
    }
    assert_eq!(fs::read_to_string(clients).unwrap().lines().count(), 1);
}

/// Watches as many cameras as need about twice what this machine has now, for `seconds`.
fn twice_too_much(mode: &str, seconds: u32) {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    heavy(&model);
    let loaded = Model::load(&model).unwrap();
    let mode_of = <actiond::config::Mode as clap::ValueEnum>::from_str(mode, true).unwrap();
    let options = LoadOptions { mode: mode_of, ..LoadOptions::default() };
    let (mut network, _) = inference::load_with(&loaded, &["tract".into()], &options).unwrap();
    let mut hop = Hop::of(network.as_ref(), 2);
    for (input, &frames) in hop.inputs.iter_mut().zip(&hop.frames) {
        *input = inference::Tensor::F32(vec![0.5; 3 * frames * 32 * 32]);
    }
    let mut times = Vec::new();
    for _ in 0..7 {
        let began = Instant::now();
        network.step(Lane(0), &hop).unwrap();
        hop.follows = true;
        times.push(began.elapsed());
    }
    times.sort();
    let cameras = (2.0 * 0.32 / times[3].as_secs_f64()).ceil().clamp(2.0, 40.0) as usize;
    eprintln!("a hop takes {:?}: {cameras} cameras", times[3]);

    halves(&folder.path().join("halves.y4m"), seconds);
    let mut text = String::from("[model]\npath = \"model\"\nbackend = [\"tract\"]\n[journal]\npath = \"journal\"\n");
    // Whatever this network answers is an event.
    text += "[events]\nstart = 0.5\nend = 0.1\n";
    for i in 0..cameras {
        text += &format!("[[camera]]\nid = \"c{i}\"\nsource = \"halves.y4m\"\nrealtime = true\n");
    }
    fs::write(folder.path().join("actiond.toml"), text).unwrap();
    let run = Command::new(ACTIOND)
        .args(["run", "--until-end", "--mode", mode])
        .arg(folder.path().join("actiond.toml"))
        .output()
        .unwrap();
    let log = stderr(&run);
    assert!(run.status.success(), "{log}");
    let begun = log.lines().filter(|l| l.contains("cannot keep up with its cameras")).count();
    assert_eq!(begun, 1, "told once: {log}");
    let events = events(folder.path());
    let slowest = events.iter().map(|e| e["delay_ms"].as_u64().unwrap()).max().unwrap_or(u64::MAX);
    assert!(slowest < 2000, "{slowest} ms\n{log}");
    let degraded = |e: &&Value| e["flags"].as_array().unwrap().iter().any(|f| f == "degraded");
    assert!(events.iter().filter(degraded).count() > 0, "{log}");
    let number = |text: &str, before: &str| -> u64 {
        let head = text.split(before).next().unwrap_or_default().trim_end();
        head.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    let mut left_out = 0;
    for i in 0..cameras {
        let tally = tally(&log, &format!("c{i}"));
        assert!(number(tally, "hops, ") > 0, "c{i} has had no hop: {tally}\n{log}");
        assert!(!of(&events, &format!("c{i}")).is_empty(), "c{i} has no event: {tally}");
        left_out += number(tally, "hops left out") + number(tally, "made without") + number(tally, "frames in none");
    }
    assert!(left_out > 0, "{log}");
}

#[test]
fn too_many_cameras_for_dense_windows_stay_live() {
    twice_too_much("dense", 14);
}

#[test]
fn too_many_cameras_for_continuous_hops_stay_live() {
    twice_too_much("continuous", 14);
}
