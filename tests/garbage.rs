//! Damaged input of every kind: configs, manifests, model files. Whatever it says, the answer is a sentence and an exit
//! code, never a panic, an abort, a hang, or all memory. What comes by MQTT is in `publish.rs`; what is fuzzed, in `fuzz/`.

#[path = "common/onnx.rs"]
#[allow(dead_code)]
mod onnx;

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{self, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use actiond::{
    config::{Mode, Plan},
    decide::Decider,
    error::Kind,
    inference::{self, Hop, Lane, LoadOptions, Tensor},
    model::{Dtype, Model},
    scale,
};
use onnx::{
    Attribute::{Int, Ints, Text},
    Dim::{N, T},
    Graph, Random, write_model,
};
use tempfile::TempDir;
use tract_onnx::pb::tensor_proto::DataType;

const ACTIOND: &str = env!("CARGO_BIN_EXE_actiond");

/// Every byte of `bytes`, each of its bits flipped.
fn flips(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    (0..bytes.len() * 8).map(|at| {
        let mut flipped = bytes.to_vec();
        flipped[at / 8] ^= 1 << (at % 8);
        flipped
    })
}

/// A folder, in memory where that can be had: on a disk, a file that is replaced thousands of times is flushed each time.
fn in_memory() -> TempDir {
    let shared = Path::new("/dev/shm");
    if shared.is_dir() { tempfile::tempdir_in(shared).unwrap() } else { tempfile::tempdir().unwrap() }
}

// --- Configs --------------------------------------------------------------------------------------------------------

/// `MODEL` stands for the shipped model's folder.
const CONFIG: &str = r#"[device]
id = "dock-3"
[model]
path = "MODEL"
backend = ["cpu", "tract"]
[[camera]]
id = "door"
source = "rtsp://user:${DOOR}@10.0.0.5/stream"
region = [0.1, 0.0, 0.8, 1.0]
mask = [[0.0, 0.0, 0.3, 1.0], [[0.6, 0.0], [1.0, 0.0], [1.0, 0.5]]]
rtsp_transport = "tcp"
[events]
start = 0.6
end = 0.4
ignore = ["walking"]
[events.label.falling]
by = "peak"
min_hops = 2
[journal]
path = "journal"
fsync = "second"
max_mb = 1024
[mqtt]
url = "mqtts://broker:8883"
username = "dock-3"
password_file = "mqtt.password"
home_assistant = true
binary_sensors = ["falling"]
[[webhook]]
url = "https://example.org/hook"
headers = { X-Site = "north" }
[web]
listen = "127.0.0.1:8642"
"#;

fn config() -> String {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default");
    CONFIG.replace("MODEL", model.to_str().unwrap()).replace("${DOOR}", "secret")
}

/// What stands before an error's text: `NAME:LINE:COLUMN: `.
fn has_place(error: &str, name: &str) -> bool {
    let place = error.strip_prefix(name).and_then(|rest| rest.strip_prefix(':')).unwrap_or_default();
    let mut numbers = place.splitn(3, ':').map(|n| n.parse::<u32>().is_ok());
    numbers.next() == Some(true) && numbers.next() == Some(true)
}

#[test]
fn a_config_with_any_bit_flipped_is_a_plan_or_errors_with_their_place() {
    let folder = in_memory();
    let path = folder.path().join("actiond.toml");
    let name = path.display().to_string();
    let text = config();
    fs::write(&path, &text).unwrap();
    Plan::load(&path).unwrap();
    let (mut good, mut bad) = (0, 0);
    for flipped in flips(text.as_bytes()) {
        fs::write(&path, &flipped).unwrap();
        match Plan::load(&path) {
            Ok(_) => good += 1,
            Err(errors) => {
                bad += 1;
                assert!(!errors.is_empty());
                for e in errors {
                    let said = e.to_string();
                    let text = || String::from_utf8_lossy(&flipped).into_owned();
                    assert!(e.kind() == Kind::Config && has_place(&said, &name), "{said}\n{}", text());
                }
            }
        }
    }
    eprintln!("{} flips: {good} plans, {bad} refused", good + bad);
    assert!(good > 500 && bad > 2000, "{good} {bad}");
}

#[test]
fn the_binary_says_what_is_wrong_with_a_damaged_config_and_ends_with_2() {
    let folder = in_memory();
    let path = folder.path().join("actiond.toml");
    let text = config();
    let mut random = Random(31);
    let mut refused = 0;
    for _ in 0..25 {
        let mut bytes = text.clone().into_bytes();
        bytes[random.below(text.len())] ^= 1 << random.below(8);
        fs::write(&path, &bytes).unwrap();
        let output = Command::new(ACTIOND).arg("check").arg(&path).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            Some(0) => {}
            Some(2) => {
                refused += 1;
                assert!(said.contains(path.to_str().unwrap()) && !said.contains("panicked"), "{said}");
            }
            code => panic!("{code:?}: {said}\n{}", String::from_utf8_lossy(&bytes)),
        }
    }
    assert!(refused > 5, "{refused}");
}

// --- Manifests ------------------------------------------------------------------------------------------------------

#[test]
fn a_manifest_with_any_bit_flipped_is_a_model_that_can_be_decided_by_or_an_error() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default");
    let folder = in_memory();
    let path = folder.path().join("model.toml");
    // Small files in place of the networks: no one runs them here.
    let mut text = fs::read_to_string(shipped.join("model.toml")).unwrap();
    for stream in Model::load(&shipped).unwrap().manifest.streams {
        for file in stream.files {
            fs::write(folder.path().join(&file.path), &file.sha256).unwrap();
            text = text.replace(&file.sha256, &onnx::sha256(file.sha256.as_bytes()));
        }
    }
    fs::copy(shipped.join("labels.txt"), folder.path().join("labels.txt")).unwrap();
    fs::write(&path, &text).unwrap();
    Model::load(folder.path()).unwrap();
    let (mut good, mut bad) = (0, 0);
    for flipped in flips(text.as_bytes()) {
        fs::write(&path, &flipped).unwrap();
        let text = || String::from_utf8_lossy(&flipped).into_owned();
        match Model::load(folder.path()) {
            Ok(model) => {
                good += 1;
                let (views, of_stream) = scale::views(&model.manifest);
                assert!(of_stream.iter().all(|&view| view < views.len()));
                if let Err(e) = Decider::new(&model, &Default::default(), 8) {
                    assert_eq!(e.kind(), Kind::Model, "{e}\n{}", text());
                }
            }
            Err(e) => {
                bad += 1;
                let named = e.to_string().contains(folder.path().to_str().unwrap());
                assert!(e.kind() == Kind::Model && named, "{e}\n{}", text());
            }
        }
    }
    eprintln!("{} flips: {good} models, {bad} refused", good + bad);
    assert!(good > 500 && bad > 5000, "{good} {bad}");
}

// --- Model files ----------------------------------------------------------------------------------------------------

/// A case may take so long before it counts as hanging; a busy machine takes some hundredths of a second.
const PATIENCE: Duration = Duration::from_secs(100);

/// Kilobytes of address space that a process with ONNX Runtime in it may take: its libraries are most of it.
const MOST_KB: u64 = 4 << 20;

const LABELS: usize = 3;

/// A small one of I3D's kind, quantized or not, that has every operator of it.
fn inception(seed: u64, quantized: bool, time: onnx::Dim) -> Vec<u8> {
    let mut g = Graph::new(seed);
    g.quantized = quantized;
    let same = || ("auto_pad", Text("SAME_UPPER"));
    let x = g.input("input", DataType::Float, &[N(1), N(2), time, N(6), N(6)]);
    let x = g.convolution(&x, [2, 4], [3, 3, 3], &[("strides", Ints(&[2, 1, 1])), ("pads", Ints(&[0, 1, 1, 1, 1, 1]))]);
    let x = g.relu(&x);
    let x = g.op("MaxPool", &[&x], &[("kernel_shape", Ints(&[1, 3, 3])), ("strides", Ints(&[1, 2, 2])), same()]);
    let a = g.convolution(&x, [4, 2], [1, 1, 1], &[]);
    let b = g.convolution(&x, [4, 2], [3, 1, 1], &[same()]);
    let b = g.relu(&b);
    let x = g.op("Concat", &[&a, &b], &[("axis", Int(1))]);
    let pool = [("kernel_shape", Ints(&[2, 2, 2])), ("strides", Ints(&[2, 2, 2])), same()];
    let x = g.op("MaxPool", &[&x], &pool);
    let x = g.op("AveragePool", &[&x], &[("kernel_shape", Ints(&[2, 2, 2])), ("strides", Ints(&[1, 1, 1]))]);
    let x = g.convolution(&x, [4, LABELS], [1, 1, 1], &[]);
    let x = g.op("ReduceMean", &[&x], &[("axes", Ints(&[2, 3, 4])), ("keepdims", Int(0))]);
    g.output(&x, "logits", &[N(1), N(LABELS as i64)]);
    g.bytes()
}

/// What is mutated: networks of this file, and those that the fuzzer starts from.
fn graphs() -> Vec<Vec<u8>> {
    let mut graphs = vec![
        inception(1, false, T("T")),
        inception(2, false, N(64)),
        inception(3, true, T("T")),
        inception(4, true, N(64)),
    ];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/graph");
    for number in 0..8 {
        graphs.push(fs::read(folder.join(format!("{number}.onnx"))).unwrap());
    }
    graphs
}

fn mutated(good: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..1 + random.below(3) {
        if bytes.is_empty() {
            break;
        }
        let at = random.below(bytes.len());
        let end = (at + 1 + random.below(20)).min(bytes.len());
        match random.below(8) {
            0..=3 => bytes[at] ^= 1 << random.below(8),
            4 => bytes.truncate(at),
            // Large numbers, and negative ones.
            5 => bytes[at..end].fill(0xff),
            6 => bytes[at..end].iter_mut().for_each(|b| *b = random.bits() as u8),
            _ => {
                let slice = bytes[at..(at + 1 + random.below(200)).min(bytes.len())].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, slice);
            }
        }
    }
    bytes
}

/// Loads a case's graph and, where that goes well, runs it once. What came of it, in a word.
fn case(number: u64, backend: &str, graphs: &[Vec<u8>], folder: &Path) -> &'static str {
    let mut random = Random(number);
    let bytes = mutated(&graphs[number as usize % graphs.len()], &mut random);
    let stream = "name = \"flow\"\nkind = \"flow\"\nframes = 64\nsize = [6, 6]\nfit = \"squeeze\"\nlayout = \"NCTHW\"\n\
                  input = \"input\"\noutput = \"logits\"";
    write_model(folder, LABELS, &[(stream, vec![("f32", "net.onnx", &bytes)])]);
    let model = Model::load(folder).unwrap();
    let mut modes = vec![Mode::Dense];
    for mode in [Mode::Window, Mode::Carried, Mode::Continuous] {
        match inference::check_mode(&model, mode, 8) {
            Ok(()) => modes.push(mode),
            Err(e) => assert_eq!(e.kind(), Kind::Model, "mode {}: {e}", mode.name()),
        }
    }
    let mode = modes[random.below(modes.len())];
    let options = LoadOptions { threads: Some(1 + random.below(2)), mode, ..LoadOptions::default() };
    let mut network = match inference::load_with(&model, &[backend.into()], &options) {
        Ok((network, _)) => network,
        Err(e) => {
            assert_eq!(e.kind(), Kind::Model, "{e}");
            return "refused";
        }
    };
    let mut hop = Hop::of(network.as_ref(), 1);
    let elements = model.manifest.streams[0].shape(hop.frames[0]).iter().product();
    hop.inputs[0] = match (hop.packed[0], model.manifest.streams[0].dtype) {
        (Some(_), _) => Tensor::I8(vec![1; elements]),
        (None, Dtype::U8) => Tensor::U8(vec![1; elements]),
        (None, Dtype::F32) => Tensor::F32(random.floats(elements)),
    };
    match network.step(Lane(0), &hop).map(|scores| scores.logits.len()) {
        Ok(streams) => {
            assert_eq!(streams, 1);
            "runs"
        }
        Err(e) => {
            assert_eq!(e.kind(), Kind::Internal, "{e}");
            "fails when it is run"
        }
    }
}

const CASES: &str = "ACTIOND_GARBAGE_CASES";

/// Not a test: the process that [`mutated_graphs`] gives its cases to, as an abort in one is the end of the process.
#[test]
#[ignore = "started by the test of mutated graphs"]
fn cases() {
    let Ok(asked) = env::var(CASES) else { return };
    let (backend, range) = asked.split_once(' ').unwrap();
    let (from, to) = range.split_once(' ').unwrap();
    let (from, to): (u64, u64) = (from.parse().unwrap(), to.parse().unwrap());
    let began = Instant::now();
    let since = Arc::new(AtomicU64::new(0));
    let watched = since.clone();
    thread::spawn(move || {
        loop {
            thread::sleep(Duration::from_millis(500));
            let since = Duration::from_millis(watched.load(Ordering::SeqCst));
            if began.elapsed().saturating_sub(since) > PATIENCE {
                eprintln!("it hangs");
                process::abort();
            }
        }
    });
    let graphs = graphs();
    let folder = in_memory();
    let mut out = std::io::stdout().lock();
    for number in from..to {
        writeln!(out, "case {number}").unwrap();
        out.flush().unwrap();
        since.store(began.elapsed().as_millis() as u64, Ordering::SeqCst);
        let what = case(number, backend, &graphs, folder.path());
        writeln!(out, "came {what}").unwrap();
    }
    let peak = fs::read_to_string("/proc/self/status").unwrap();
    let peak = peak.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap().trim().to_owned();
    writeln!(out, "peak {peak}").unwrap();
}

/// Gives a process these cases. What came of them, and those that it did not survive.
fn run_cases(backend: &str, from: u64, to: u64) -> (BTreeMap<String, u64>, Vec<String>) {
    let (mut came, mut failures) = (BTreeMap::new(), Vec::new());
    let mut next = from;
    while next < to {
        let errors = tempfile::NamedTempFile::new().unwrap();
        let mut child = Command::new("sh")
            .args(["-c", &format!("ulimit -v {MOST_KB}; ulimit -c 0; exec \"$0\" \"$@\"")])
            .arg(env::current_exe().unwrap())
            .args(["--exact", "cases", "--ignored", "--nocapture", "--test-threads=1"])
            .env(CASES, format!("{backend} {next} {to}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors.reopen().unwrap())
            .spawn()
            .unwrap();
        let (mut last, mut whole) = (next, false);
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            if let Some(number) = line.strip_prefix("case ") {
                last = number.parse().unwrap();
            } else if let Some(what) = line.strip_prefix("came ") {
                *came.entry(what.to_owned()).or_default() += 1;
            } else if let Some(peak) = line.strip_prefix("peak ") {
                whole = true;
                let peak: u64 = peak.trim_end_matches(" kB").parse().unwrap();
                let most = came.entry("peak kB".to_owned()).or_default();
                *most = peak.max(*most);
            }
        }
        let status = child.wait().unwrap();
        if whole && status.success() {
            break;
        }
        let said = fs::read_to_string(errors.path()).unwrap_or_default();
        let tail: Vec<&str> = said.lines().rev().take(6).collect();
        failures.push(format!(
            "case {last} on {backend}: {status}: {}",
            tail.into_iter().rev().collect::<Vec<_>>().join(" | ")
        ));
        next = last + 1;
    }
    (came, failures)
}

/// The short form of `scripts/soak garbage`.
#[test]
fn mutated_graphs_with_the_right_checksum_are_refused_or_run() {
    let count: u64 = env::var("ACTIOND_GARBAGE").map_or(500, |n| n.parse().unwrap());
    let usable = inference::available();
    let mut failures = Vec::new();
    for backend in ["tract", "cpu"] {
        if let Some(missing) = usable.iter().find(|a| a.name == backend && !a.usable) {
            eprintln!("skipped: {backend} ({})", missing.found);
            continue;
        }
        let began = Instant::now();
        let (came, failed) = run_cases(backend, 0, count);
        eprintln!("{backend}: {count} graphs in {:?}: {came:?}, {} not survived", began.elapsed(), failed.len());
        // A mutation may fall on a weight, or on what nobody reads.
        let refused = came.get("refused").copied().unwrap_or(0);
        assert!(refused > count / 4 && came["runs"] > count / 20, "{came:?}");
        failures.extend(failed);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
