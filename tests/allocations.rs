//! After warm-up a frame costs no allocation on its way from the source to the recognizer's tensors.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs,
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use actiond::{
    inference::Tensor,
    input,
    intake::{Intake, Output},
    model::{Manifest, Model},
    ring::{Bell, Rhythm, Ring, Step},
    scale::{self, Region},
    source::{self, Pace, Uri},
    time::Shutdown,
};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: hands everything to the system's allocator and only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MANIFEST: &str = r#"
name = "allocations"
version = "1"
architecture = "two-stream-i3d"
licence = "MIT"
source = "test"
fps = 25
labels = "labels.txt"
fusion = { rule = "probabilities" }
[[stream]]
name = "rgb"
kind = "rgb"
frames = 64
size = [64, 64]
fit = "squeeze"
layout = "NCTHW"
input = "input"
output = "logits"
file = []
[[stream]]
name = "flow"
kind = "flow"
frames = 64
size = [64, 64]
fit = "crop"
layout = "NCTHW"
input = "input"
output = "logits"
bound = 6.0
flow = { algorithm = "dis", preset = "fast", finest_scale = 1, refinement = 0, upscale = 2 }
file = []
"#;

/// 700 pictures of 160x120 at 30 fps, in which something moves.
fn recording(path: &std::path::Path) {
    let mut file = std::io::BufWriter::new(fs::File::create(path).unwrap());
    file.write_all(b"YUV4MPEG2 W160 H120 F30:1 Ip A1:1 C420jpeg\n").unwrap();
    for t in 0..700usize {
        file.write_all(b"FRAME\n").unwrap();
        let luma: Vec<u8> = (0..160 * 120).map(|i| ((i % 160 + 3 * t) / 8 * 40 + i / 160) as u8).collect();
        file.write_all(&luma).unwrap();
        file.write_all(&[128; 2 * 80 * 60]).unwrap();
    }
}

#[test]
fn a_frame_costs_no_allocation_after_warm_up() {
    let manifest: Manifest = toml::from_str(MANIFEST).unwrap();
    let model = Model { folder: ".".into(), manifest, labels: vec!["a".into(), "b".into()] };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("moving.y4m");
    recording(&path);

    let (specs, view_of_stream) = scale::views(&model.manifest);
    let mut intake = Intake::new(&specs, Region::WHOLE).unwrap().telling_still(true);
    let ring = Ring::new(Pace::Recorded, Rhythm { window: 64, hop: 8, carried: false }, Arc::new(Bell::default()));
    let mut source = source::open(&Uri::file(&path), &source::Options::default(), &Shutdown::new()).unwrap();
    let mut tensors = vec![Tensor::F32(Vec::new()), Tensor::F32(Vec::new())];
    let (mut hops, mut after_warm_up) = (0, 0);
    for picture_number in 0..700 {
        // The ring is full after 96 frames, some 116 pictures at 30 fps.
        if picture_number == 200 {
            after_warm_up = ALLOCATIONS.load(Ordering::Relaxed);
        }
        let picture = source.next().unwrap();
        intake
            .take(&picture, &mut |output| match output {
                Output::Frame(frame) => assert!(ring.push(frame)),
                Output::Cut { .. } => panic!("no cut in this recording"),
            })
            .unwrap();
        let step = ring.take(|window| {
            for ((stream, &view), tensor) in model.manifest.streams.iter().zip(&view_of_stream).zip(&mut tensors) {
                input::fill(stream, view, None, stream.frames, window.len(), |i| window.frame(i), tensor);
            }
        });
        hops += u64::from(matches!(step, Some(Step::Hop(_))));
    }
    let counted = ALLOCATIONS.load(Ordering::Relaxed) - after_warm_up;
    assert!(hops > 60, "{hops} hops");
    assert_eq!(counted, 0, "allocations in 500 pictures and their hops");
}
