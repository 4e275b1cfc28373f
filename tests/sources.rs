//! Sources on real parts: files that ffmpeg writes, pipelines that GStreamer runs, and a real RTSP server.

#[path = "common/rtsp.rs"]
mod rtsp;

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use actiond::{
    error::{Error, Kind},
    frame::{Matrix, Picture, Pixels},
    source::{self, Options, Pace, RtspTransport, Source, Uri},
    time::Shutdown,
};
use rtsp::Server;
use tempfile::TempDir;

/// Grey pictures whose brightness says their number, so that order and completeness can be read from what comes out.
fn numbered(size: &str, rate: &str, pictures: u32) -> String {
    format!("color=black:s={size}:r={rate},format=yuv420p,geq=lum='20+2*N':cb=128:cr=128,trim=end_frame={pictures}")
}

/// Lets ffmpeg make `name` in `folder` of what the filter `video` gives, and returns its path.
fn make(folder: &TempDir, name: &str, video: &str, arguments: &str) -> PathBuf {
    let path = folder.path().join(name);
    let status = Command::new("ffmpeg")
        .args(["-v", "error", "-nostdin", "-y", "-threads", "2", "-f", "lavfi", "-i", video])
        .args(arguments.split_whitespace())
        .arg(&path)
        .status()
        .expect("ffmpeg: scripts/setup --tests installs it");
    assert!(status.success(), "ffmpeg makes {name}");
    path
}

const H264: &str = "-c:v libx264 -preset ultrafast -bf 2 -qp 8";

/// What is remembered of a picture.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    time: Duration,
    size: (usize, usize),
    dropped: u64,
    /// The middle of the picture: luma, or green.
    middle: u8,
}

impl Seen {
    fn of(picture: &Picture) -> Seen {
        let (x, y) = (picture.width / 2, picture.height / 2);
        let middle = match picture.pixels {
            Pixels::I420 { y: plane, .. } => plane.data[y * plane.stride + x],
            Pixels::Rgb(plane) => plane.data[y * plane.stride + 3 * x + 1],
        };
        // In the range of television, whatever it came in.
        let middle = match picture.pixels {
            Pixels::I420 { full_range: true, .. } => (16.0 + f64::from(middle) * 219.0 / 255.0).round() as u8,
            _ => middle,
        };
        // Every byte that the planes promise is there to be read.
        match picture.pixels {
            Pixels::I420 { y, u, v, .. } => {
                assert!(y.data.len() >= (picture.height - 1) * y.stride + picture.width);
                let (width, height) = (picture.width.div_ceil(2), picture.height.div_ceil(2));
                assert!([u, v].iter().all(|p| p.data.len() >= (height - 1) * p.stride + width));
            }
            Pixels::Rgb(plane) => assert!(plane.data.len() >= (picture.height - 1) * plane.stride + 3 * picture.width),
        }
        Seen { time: picture.time, size: (picture.width, picture.height), dropped: picture.dropped, middle }
    }

    /// The number that [`numbered`] painted.
    fn number(&self) -> i32 {
        (i32::from(self.middle) - 20 + 1) / 2
    }
}

fn options() -> Options {
    Options { stall: Duration::from_secs(8), ..Options::default() }
}

fn open(uri: &str, options: &Options) -> Result<Box<dyn Source>, Error> {
    source::open(&Uri::parse(uri)?, options, &Shutdown::new())
}

/// Plays to the end, `pause` after each picture.
fn play(source: &mut dyn Source, pause: Duration) -> (Vec<Seen>, Error) {
    let begin = Instant::now();
    let mut seen: Vec<Seen> = Vec::new();
    loop {
        match source.next() {
            Ok(picture) => {
                seen.push(Seen::of(&picture));
                if let [.., before, last] = seen.as_slice() {
                    assert!(before.time <= last.time, "time goes on: {before:?}, {last:?}");
                }
                thread::sleep(pause);
            }
            Err(e) => return (seen, e),
        }
        assert!(begin.elapsed() < Duration::from_secs(120), "it does not end");
    }
}

fn play_file(path: &Path) -> (Vec<Seen>, Error) {
    match open(path.to_str().unwrap(), &options()) {
        Ok(mut source) => play(&mut *source, Duration::ZERO),
        Err(e) => (Vec::new(), e),
    }
}

fn times(seen: &[Seen]) -> Vec<f64> {
    seen.iter().map(|s| s.time.as_secs_f64()).collect()
}

#[test]
fn every_container_and_codec_gives_every_picture_in_order_and_on_time() {
    let folder = tempfile::tempdir().unwrap();
    let sound = "-f lavfi -i sine=duration=3 -c:a aac";
    for (name, arguments) in [
        ("a.mp4", format!("{sound} {H264}")),
        ("b.mkv", H264.into()),
        ("c.ts", format!("{sound} {H264}")),
        ("d.flv", format!("{sound} {H264}")),
        ("e.avi", "-c:v mpeg4 -q:v 2".into()),
        ("f.mov", "-c:v libx265 -preset ultrafast -x265-params log-level=error".into()),
        ("g.webm", "-c:v libvpx -b:v 2M -deadline realtime".into()),
        ("h.webm", "-c:v libvpx-vp9 -b:v 2M -deadline realtime -cpu-used 8".into()),
        ("i.avi", "-c:v mjpeg -q:v 2".into()),
        ("j.mpg", "-c:v mpeg2video -q:v 2".into()),
        ("k.mkv", "-c:v ffv1".into()),
        ("l.h264", H264.into()),
    ] {
        let path = make(&folder, name, &numbered("160x120", "25", 75), &arguments);
        let (seen, end) = play_file(&path);
        assert_eq!(end.kind(), Kind::EndOfStream, "{name}: {end}");
        assert_eq!(seen.len(), 75, "{name}");
        for (number, picture) in seen.iter().enumerate() {
            assert!(
                (picture.number() - number as i32).abs() <= 1,
                "{name}: picture {number} shows {}",
                picture.number()
            );
            let time = picture.time.as_secs_f64();
            // A program stream stamps some pictures only; GStreamer is one picture off between them.
            let tolerance = if name.ends_with("mpg") { 0.041 } else { 0.002 };
            assert!((time - number as f64 / 25.0).abs() < tolerance, "{name}: picture {number} at {time} s");
            assert_eq!((picture.size, picture.dropped), ((160, 120), 0), "{name}");
        }
    }
}

#[test]
fn a_gif_is_played_once_whatever_it_is_called() {
    let folder = tempfile::tempdir().unwrap();
    let gif = make(&folder, "a.gif", "testsrc=s=64x48:r=10:d=2", "-loop 0");
    let named = folder.path().join("b.mp4");
    fs::copy(&gif, &named).unwrap();
    for path in [gif, named] {
        let (seen, end) = play_file(&path);
        assert_eq!((seen.len(), end.kind()), (20, Kind::EndOfStream), "{}", path.display());
        assert!((seen[19].time.as_secs_f64() - 1.9).abs() < 0.01);
    }
}

#[test]
fn times_are_right_at_every_rate() {
    let folder = tempfile::tempdir().unwrap();
    for (rate, fps, pictures) in [("10", 10.0, 20), ("30000/1001", 30000.0 / 1001.0, 45), ("60", 60.0, 60)] {
        for name in ["a.mp4", "a.mkv", "a.avi"] {
            let (seen, _) = play_file(&make(&folder, name, &numbered("64x64", rate, pictures), H264));
            assert_eq!(seen.len(), pictures as usize, "{name} at {rate}");
            for (number, time) in times(&seen).into_iter().enumerate() {
                assert!((time - number as f64 / fps).abs() < 0.002, "{name} at {rate}: {number} at {time}");
            }
        }
    }
    // A variable rate: every picture keeps its own time.
    let gaps = format!("{},select='not(mod(n,3))+not(mod(n,7))'", numbered("64x64", "25", 75));
    for name in ["v.mp4", "v.mkv"] {
        let (seen, end) = play_file(&make(&folder, name, &gaps, &format!("-vsync vfr {H264}")));
        let kept: Vec<i32> = (0..75).filter(|n| n % 3 == 0 || n % 7 == 0).collect();
        assert_eq!((seen.len(), end.kind()), (kept.len(), Kind::EndOfStream));
        for (picture, number) in seen.iter().zip(kept) {
            assert!(
                (picture.time.as_secs_f64() - f64::from(number) / 25.0).abs() < 0.002,
                "{name}: {picture:?} is {number}"
            );
        }
    }
}

#[test]
fn every_size_from_one_pixel_to_4k() {
    let folder = tempfile::tempdir().unwrap();
    for (name, size, arguments, rate, pictures) in [
        ("one.mkv", (1_usize, 1_usize), "-c:v ffv1", "25", 5),
        ("one.y4m", (1, 1), "", "25", 5),
        ("two.mp4", (2, 2), H264, "25", 5),
        ("odd.webm", (321, 241), "-c:v libvpx -b:v 2M -deadline realtime", "25", 5),
        ("portrait.mp4", (360, 640), H264, "25", 5),
        ("4k.mp4", (3840, 2160), H264, "5", 5),
        ("wide.mkv", (4096, 2), "-c:v ffv1", "25", 2),
    ] {
        let video = numbered(&format!("{}x{}", size.0.next_multiple_of(2), size.1.next_multiple_of(2)), rate, pictures);
        let path = make(&folder, name, &format!("{video},crop={}:{}:exact=1", size.0, size.1), arguments);
        let (seen, end) = play_file(&path);
        assert_eq!((seen.len(), end.kind()), (pictures as usize, Kind::EndOfStream), "{name}: {end}");
        assert!(seen.iter().all(|s| s.size == size), "{name}: {:?}", seen[0].size);
        assert!(seen.iter().enumerate().all(|(n, s)| (s.number() - n as i32).abs() <= 1), "{name}");
    }
}

#[test]
fn a_phone_held_upright_gives_an_upright_picture() {
    let folder = tempfile::tempdir().unwrap();
    let path = make(&folder, "phone.mp4", "testsrc=s=160x120:r=25:d=1,format=yuv420p", H264);
    assert_eq!(play_file(&path).0[0].size, (160, 120));
    // The rotation of a clip is a matrix in its track header; a quarter turn, as phones write it.
    let mut bytes = fs::read(&path).unwrap();
    let matrix = bytes.windows(4).position(|w| w == b"tkhd").unwrap() + 4 + 40;
    let turn: [i32; 9] = [0, 1 << 16, 0, -(1 << 16), 0, 0, 120 << 16, 0, 1 << 30];
    for (to, value) in bytes[matrix..].chunks_mut(4).zip(turn) {
        to.copy_from_slice(&value.to_be_bytes());
    }
    fs::write(&path, bytes).unwrap();
    let (seen, end) = play_file(&path);
    assert_eq!((seen.len(), seen[0].size, end.kind()), (25, (120, 160), Kind::EndOfStream));
}

#[test]
fn colors_come_with_what_they_mean() {
    let folder = tempfile::tempdir().unwrap();
    let (yuv, jpeg) = ("color=red:s=64x64:r=5:d=1,format=yuv420p", "color=red:s=64x64:r=5:d=1,format=yuvj420p");
    for (name, video, arguments, matrix, full) in [
        ("small.mp4", yuv.to_owned(), H264.to_owned(), Matrix::Bt601, false),
        ("hd.mp4", yuv.replace("64x64", "1280x720"), H264.into(), Matrix::Bt709, false),
        (
            "said.mp4",
            yuv.into(),
            format!("{H264} -colorspace bt709 -color_primaries bt709 -color_trc bt709"),
            Matrix::Bt709,
            false,
        ),
        ("jpeg.avi", jpeg.into(), "-c:v mjpeg -q:v 2".into(), Matrix::Bt601, true),
        ("full.mp4", jpeg.into(), format!("{H264} -color_range pc"), Matrix::Bt601, true),
    ] {
        let path = make(&folder, name, &video, &arguments);
        let mut source = open(path.to_str().unwrap(), &options()).unwrap();
        match source.next().unwrap().pixels {
            Pixels::I420 { matrix: m, full_range, .. } => assert_eq!((m, full_range), (matrix, full), "{name}"),
            Pixels::Rgb(_) => panic!("{name} is RGB"),
        }
    }
    // What is not 4:2:0 is converted, what is RGB stays so.
    for (name, format, arguments) in [
        ("444.mp4", "yuv444p", H264),
        ("422.mp4", "yuv422p", H264),
        ("10bit.mkv", "yuv420p10le", "-c:v ffv1"),
        ("grey.mkv", "gray", "-c:v ffv1"),
        ("rgb.mkv", "bgr0", "-c:v ffv1"),
    ] {
        let (seen, end) =
            play_file(&make(&folder, name, &format!("color=white:s=64x48:r=5:d=1,format={format}"), arguments));
        assert_eq!((seen.len(), end.kind()), (5, Kind::EndOfStream), "{name}: {end}");
        assert!(seen.iter().all(|s| s.middle >= 233), "{name} is not white: {}", seen[0].middle);
    }
}

#[test]
fn a_stream_may_change_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let mut both = Vec::new();
    for (name, size) in [("a.ts", "160x120"), ("b.ts", "320x180")] {
        both.extend(fs::read(make(&folder, name, &numbered(size, "25", 25), H264)).unwrap());
    }
    let path = folder.path().join("both.ts");
    fs::write(&path, both).unwrap();
    let (seen, end) = play_file(&path);
    assert_eq!((seen.len(), end.kind()), (50, Kind::EndOfStream), "{end}");
    assert_eq!((seen[24].size, seen[25].size), ((160, 120), (320, 180)));
}

#[test]
fn a_cut_file_gives_what_it_has_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let noise = format!("{},noise=alls=20:allf=t", numbered("160x120", "25", 75));
    for (name, arguments) in [
        ("a.mp4", format!("{H264} -movflags faststart")),
        ("b.mkv", H264.into()),
        ("c.ts", H264.into()),
        ("d.avi", "-c:v mpeg4 -q:v 5".into()),
        ("e.webm", "-c:v libvpx -b:v 1M -deadline realtime".into()),
        ("f.y4m", String::new()),
    ] {
        let path = make(&folder, name, &noise, &arguments);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let (seen, end) = play_file(&path);
        assert_eq!(end.kind(), Kind::EndOfStream, "{name}: {end}");
        assert!((20..60).contains(&seen.len()), "{name}: {} pictures of about 37", seen.len());
    }
    // Without its index, which comes last, nothing of an MP4 can be read.
    let path = make(&folder, "g.mp4", &noise, H264);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let (seen, end) = play_file(&path);
    assert_eq!((seen.len(), end.kind()), (0, Kind::Config));
    assert!(end.to_string().contains("g.mp4 is not a video that can be played, or it is damaged"), "{end}");
}

#[test]
fn what_is_no_video_is_told_in_a_sentence_that_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let sound = folder.path().join("sound.mp4");
    let status = Command::new("ffmpeg")
        .args("-v error -nostdin -y -f lavfi -i sine=duration=1 -c:a aac".split(' '))
        .arg(&sound)
        .status();
    assert!(status.unwrap().success());
    let noise: Vec<u8> = random_bytes(7).take(50_000).collect();
    for (path, what) in [
        (write("empty.mp4", b""), "is empty (0 bytes)"),
        (write("text.mp4", b"This is a text file that is named .mp4.\n"), "is not a video that can be played"),
        (write("noise.mp4", &noise), "is not a video that can be played"),
        (write("byte.mkv", b"\x1a"), "is not a video that can be played"),
        (folder.path().join("missing.mp4"), "does not exist"),
        (folder.path().join("missing folder"), "does not exist"),
        (folder.path().to_owned(), "is a folder without images"),
        (sound, "has no video in it"),
    ] {
        let (seen, error) = play_file(&path);
        assert_eq!((seen.len(), error.kind()), (0, Kind::Config), "{}: {error}", path.display());
        let text = error.to_string();
        assert!(text.contains(what) && text.contains(path.to_str().unwrap()), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }
}

/// A stream of bytes that is the same each time.
fn random_bytes(seed: u64) -> impl Iterator<Item = u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
}

#[test]
fn damaged_files_end_one_way_or_the_other() {
    let folder = tempfile::tempdir().unwrap();
    for (name, arguments) in [("a.mp4", H264), ("a.mkv", H264), ("a.ts", H264), ("a.avi", "-c:v mjpeg"), ("a.y4m", "")]
    {
        let whole = fs::read(make(&folder, name, &numbered("64x64", "25", 25), arguments)).unwrap();
        for seed in 1..=8 {
            let mut bytes = whole.clone();
            let mut random = random_bytes(seed);
            for _ in 0..seed * 3 {
                let at: usize = (0..3).fold(0, |at, _| at << 8 | usize::from(random.next().unwrap()));
                let at = at % bytes.len();
                bytes[at] = random.next().unwrap();
            }
            let path = folder.path().join(format!("damaged-{seed}-{name}"));
            fs::write(&path, bytes).unwrap();
            let begin = Instant::now();
            let (seen, end) = play_file(&path);
            assert!(
                matches!(end.kind(), Kind::EndOfStream | Kind::Config),
                "{name} {seed}: {} pictures, {end}",
                seen.len()
            );
            assert!(begin.elapsed() < Duration::from_secs(30), "{name} {seed}");
        }
    }
}

#[test]
fn as_a_camera_a_file_keeps_its_pace_and_a_slow_reader_misses_what_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = make(&folder, "a.mp4", &numbered("160x120", "25", 50), H264);
    let live = Options { realtime: true, ..options() };
    for (pause, fewest, most) in [(0, 40, 50), (150, 8, 20)] {
        let begin = Instant::now();
        let mut source = open(path.to_str().unwrap(), &live).unwrap();
        assert_eq!(source.pace(), Pace::Live);
        let (seen, end) = play(&mut *source, Duration::from_millis(pause));
        assert_eq!(end.kind(), Kind::EndOfStream, "{end}");
        assert!(begin.elapsed() > Duration::from_millis(1900), "it takes as long as it takes");
        let dropped: u64 = seen.iter().map(|s| s.dropped).sum();
        assert_eq!(seen.len() as u64 + dropped, 50, "each is given or counted");
        assert!((fewest..=most).contains(&seen.len()), "{} at {pause} ms each", seen.len());
        // Each picture is what its number of drops says.
        let mut number = -1;
        for picture in &seen {
            number += 1 + picture.dropped as i32;
            assert!((picture.number() - number).abs() <= 1, "{picture:?} should be {number}");
        }
    }
    // A recording waits, however slow the reader is.
    let mut source = open(path.to_str().unwrap(), &options()).unwrap();
    assert_eq!(source.pace(), Pace::Recorded);
    let (seen, _) = play(&mut *source, Duration::from_millis(10));
    assert_eq!(seen.len(), 50);
}

/// The sink waits for as long as the gap lasts; nobody else may lose patience.
#[test]
fn as_a_camera_a_file_with_a_gap_in_its_timestamps_goes_on_behind_it() {
    let folder = tempfile::tempdir().unwrap();
    let video = format!("{},settb=1/1000,setpts='N*40+1500*gte(N,10)'", numbered("64x64", "25", 20));
    let path = make(&folder, "gap.mkv", &video, "-vsync passthrough -c:v libx264 -preset ultrafast -bf 0 -qp 8");
    let impatient = Options { realtime: true, stall: Duration::from_millis(500), ..options() };
    let mut source = open(path.to_str().unwrap(), &impatient).unwrap();
    let (seen, end) = play(&mut *source, Duration::ZERO);
    assert_eq!(end.kind(), Kind::EndOfStream, "{end}");
    let last = seen.last().unwrap();
    assert!(last.number() == 19 && last.time > Duration::from_millis(2200), "{last:?}");
}

#[test]
fn the_end_stays_the_end_and_a_source_may_be_left_at_any_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = make(&folder, "a.mp4", &numbered("64x64", "25", 25), H264);
    let path = path.to_str().unwrap();
    let mut source = open(path, &options()).unwrap();
    play(&mut *source, Duration::ZERO);
    assert_eq!(source.next().unwrap_err().kind(), Kind::EndOfStream);
    assert_eq!(source.next().unwrap_err().kind(), Kind::EndOfStream);

    let begin = Instant::now();
    for pictures in [0, 1, 3, 24] {
        for realtime in [false, true] {
            let mut source = open(path, &Options { realtime, ..options() }).unwrap();
            for _ in 0..pictures.min(if realtime { 3 } else { 24 }) {
                source.next().unwrap();
            }
        }
    }
    assert!(begin.elapsed() < Duration::from_secs(15), "nothing hangs when it is dropped");
}

#[test]
fn any_pipeline_is_a_source() {
    let (seen, end) = play(&mut *open("gst:videotestsrc num-buffers=30", &options()).unwrap(), Duration::ZERO);
    assert_eq!((seen.len(), end.kind()), (30, Kind::EndOfStream));

    let mut source = open("gst:videotestsrc is-live=true num-buffers=30", &options()).unwrap();
    assert_eq!(source.pace(), Pace::Live);
    let (seen, _) = play(&mut *source, Duration::from_millis(100));
    assert!(seen.len() < 20, "{}", seen.len());
    assert_eq!(seen.len() as u64 + seen.iter().map(|s| s.dropped).sum::<u64>(), 30);

    for (pipeline, what) in [
        ("gst:nosuchelement ! identity", "no element nosuchelement"),
        ("gst:avdec_nosuch ! identity", "apt install gstreamer1.0-libav"),
        ("gst:videotestsrc ! (", "does not understand the pipeline"),
        ("gst:audiotestsrc num-buffers=3", "could not link"),
        ("csi:0", "nvarguscamerasrc"),
    ] {
        let error = open(pipeline, &options()).err().unwrap_or_else(|| panic!("{pipeline} opens"));
        assert!(error.kind() == Kind::Config && error.to_string().contains(what), "{pipeline}: {error}");
    }
}

#[test]
fn a_pipeline_that_fails_gives_what_came_before() {
    let (seen, end) = play(
        &mut *open("gst:videotestsrc num-buffers=90 ! identity error-after=20", &options()).unwrap(),
        Duration::ZERO,
    );
    assert!((18..=20).contains(&seen.len()), "{}", seen.len());
    assert_eq!(end.kind(), Kind::Unavailable);
    assert!(end.to_string().contains("broke off after 0.6 s"), "{end}");
}

#[test]
fn buffers_without_times_come_at_the_rate_of_their_caps() {
    let pipeline = "gst:fakesrc sizetype=fixed sizemax=384 filltype=zero format=time num-buffers=12 \
                    ! video/x-raw,format=I420,width=16,height=16,framerate=10/1";
    let (seen, end) = play(&mut *open(pipeline, &options()).unwrap(), Duration::ZERO);
    assert_eq!((seen.len(), end.kind()), (12, Kind::EndOfStream), "{end}");
    assert!(times(&seen).iter().enumerate().all(|(n, t)| (t - n as f64 / 10.0).abs() < 1e-6), "{:?}", times(&seen));
}

#[test]
fn silence_is_noticed_and_a_pipeline_that_does_not_stop_is_left() {
    let stall = Duration::from_secs(1);
    // It sleeps for a minute before its first picture, and can't be woken.
    let pipeline = "gst:videotestsrc is-live=true ! identity sleep-time=60000000";
    let mut source = open(pipeline, &Options { stall, ..options() }).unwrap();
    let begin = Instant::now();
    let error = source.next().unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("gave no picture for 1 s"), "{error}");
    assert!(begin.elapsed() < 3 * stall);
    let begin = Instant::now();
    drop(source);
    assert!(begin.elapsed() < Duration::from_secs(9), "dropped after {:?}", begin.elapsed());
}

fn rtsp_options(transport: RtspTransport) -> Options {
    Options { rtsp_transport: transport, ..options() }
}

const TRANSPORTS: [RtspTransport; 2] = [RtspTransport::Tcp, RtspTransport::Udp];

#[test]
fn an_rtsp_stream_is_played_to_its_end_over_tcp_and_udp() {
    let folder = tempfile::tempdir().unwrap();
    let clip = make(&folder, "clip.mp4", &numbered("160x120", "25", 75), &format!("{H264} -g 25"));
    let server = Server::start(&[clip.to_str().unwrap()]);
    for transport in TRANSPORTS {
        let mut source = open(&server.address("clip"), &rtsp_options(transport)).unwrap();
        assert_eq!(source.pace(), Pace::Live);
        let (seen, end) = play(&mut *source, Duration::ZERO);
        assert_eq!(end.kind(), Kind::EndOfStream, "{transport:?}: {end}");
        let dropped: u64 = seen.iter().map(|s| s.dropped).sum();
        // UDP may lose packets where a machine is busy; TCP may not.
        let all = seen.len() as u64 + dropped;
        assert!(
            all == 75 || (transport == RtspTransport::Udp && (60..75).contains(&all)),
            "{transport:?}: {all} of 75"
        );
        let length = seen.last().unwrap().time - seen[0].time;
        assert!((2.2..3.6).contains(&length.as_secs_f64()), "{transport:?}: {length:?} of 3 s");
    }
}

#[test]
fn a_camera_that_dies_is_noticed_and_one_that_comes_back_is_found() {
    let mut server = Server::start(&[]);
    let address = server.address("live");
    for transport in TRANSPORTS {
        let options = rtsp_options(transport);
        let mut source = open(&address, &options).unwrap();
        for _ in 0..10 {
            assert_eq!(Seen::of(&source.next().unwrap()).size, (320, 240));
        }
        server.kill();
        let begin = Instant::now();
        let (_, error) = play(&mut *source, Duration::ZERO);
        assert_eq!(error.kind(), Kind::Unavailable, "{transport:?}: {error}");
        assert!(error.to_string().contains(&address), "{error}");
        assert!(begin.elapsed() < options.stall + Duration::from_secs(2), "{transport:?}: {:?}", begin.elapsed());
        drop(source);

        let error = open(&address, &options).and_then(|mut s| s.next().map(drop)).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable, "{error}");
        assert!(error.to_string().contains("can't be reached"), "{error}");

        server = Server::start_on(server.port, &[]);
        let mut source = open(&address, &options).unwrap();
        assert!(source.next().is_ok(), "{transport:?}");
    }
}

#[test]
fn a_slow_reader_of_a_camera_gets_the_newest_picture() {
    let server = Server::start(&[]);
    let mut source = open(&server.address("live"), &options()).unwrap();
    source.next().unwrap();
    let (mut dropped, begin) = (0, Instant::now());
    let mut last = Duration::ZERO;
    for _ in 0..10 {
        thread::sleep(Duration::from_millis(200));
        let picture = source.next().unwrap();
        dropped += picture.dropped;
        last = picture.time;
    }
    let all = dropped + 10;
    let expected = begin.elapsed().as_secs_f64() * 25.0;
    assert!((all as f64 - expected).abs() < 15.0, "{all} of about {expected:.0}");
    assert!(last > Duration::from_millis(1500), "the newest, not the next: {last:?}");
}

#[test]
fn rtsp_errors_say_what_to_do_and_never_a_password() {
    let server = Server::start(&["--user", "cam", "--password", "hunter2"]);
    let address = |login: &str, path: &str| server.address(path).replace("127", &format!("{login}127"));
    let first = |address: &str| open(address, &options()).and_then(|mut source| source.next().map(drop));

    first(&address("cam:hunter2@", "live")).unwrap();
    for (login, path, kind, what) in [
        ("cam:hunter3@", "live", Kind::Config, "refuses the user name or the password"),
        ("", "live", Kind::Config, "refuses the user name or the password"),
        ("cam:hunter2@", "nothing", Kind::Unavailable, "does not have this stream now"),
        ("cam:hunter2@", "sound", Kind::Config, "no video stream"),
    ] {
        let begin = Instant::now();
        let error = first(&address(login, path)).unwrap_err();
        assert_eq!(error.kind(), kind, "{login}{path}: {error}");
        assert!(error.to_string().contains(what) && !error.to_string().contains("hunter"), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
    // Nobody listens on port 9 of this machine; the name is reserved for never being there.
    for address in ["rtsp://u:hunter2@127.0.0.1:9/x", "rtsp://u:hunter2@nobody.invalid/x"] {
        let error = first(address).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable, "{error}");
        assert!(error.to_string().contains("rtsp://u:***@") && !error.to_string().contains("hunter"), "{error}");
    }
}

/// Answers every request on loopback with pictures of a Motion JPEG camera at 25 a second, then hangs up.
fn mjpeg_camera(jpeg: Vec<u8>, pictures: u32) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/video.mjpg", listener.local_addr().unwrap());
    thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let jpeg = jpeg.clone();
            thread::spawn(move || -> std::io::Result<()> {
                let mut request = [0; 4096];
                let _ = client.read(&mut request)?;
                client
                    .write_all(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=next\r\n\r\n")?;
                for _ in 0..pictures {
                    let head = format!("--next\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n", jpeg.len());
                    client.write_all(&[head.as_bytes(), &jpeg, b"\r\n"].concat())?;
                    thread::sleep(Duration::from_millis(40));
                }
                Ok(())
            });
        }
    });
    address
}

#[test]
fn an_http_camera_is_live_from_its_first_picture_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = make(&folder, "a.jpg", "testsrc=s=160x120,format=yuvj420p", "-frames:v 1");
    let address = mjpeg_camera(fs::read(path).unwrap(), 75);
    for (pause, fewest, most) in [(0, 60, 75), (150, 10, 25)] {
        let mut source = open(&address, &options()).unwrap();
        assert_eq!(source.pace(), Pace::Live);
        let begin = Instant::now();
        source.next().unwrap();
        assert!(begin.elapsed() < Duration::from_secs(2), "not kept until there is more");
        let (seen, end) = play(&mut *source, Duration::from_millis(pause));
        assert_eq!(end.kind(), Kind::EndOfStream, "{end}");
        assert!((fewest..=most).contains(&(seen.len() + 1)), "{} at {pause} ms each", seen.len() + 1);
        assert_eq!(1 + seen.len() as u64 + seen.iter().map(|s| s.dropped).sum::<u64>(), 75);
        let last = seen.last().unwrap().time.as_secs_f64();
        assert!((2.5..4.5).contains(&last), "its pictures bear no times, so they are dated when they come: {last}");
    }
}

#[test]
fn a_camera_that_never_answers_delays_no_stop() {
    // It takes the connection and says nothing, as a camera that hangs.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let options = Options { stall: Duration::from_secs(60), ..options() };
    for scheme in ["rtsp", "http"] {
        let uri = Uri::parse(&format!("{scheme}://{}/stream", silent.local_addr().unwrap())).unwrap();
        let stop = Shutdown::new();
        let mut source = source::open(&uri, &options, &stop).unwrap();
        let watcher = thread::spawn(move || source.next().map(|_| ()).unwrap_err().kind());
        thread::sleep(Duration::from_millis(300));
        assert!(!watcher.is_finished(), "{scheme}: there is nothing to see");
        stop.set();
        assert_eq!(watcher.join().unwrap(), Kind::EndOfStream, "{scheme}");
    }
}
