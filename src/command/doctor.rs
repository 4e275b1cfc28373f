//! `actiond doctor`: what this board has and what is missing, each finding with its mend.

use std::{
    fmt::Write as _,
    io::IsTerminal,
    path::{Path, PathBuf},
};

use gstreamer::{self as gst, prelude::*};
use serde::Serialize;

use crate::{
    config::Plan,
    error::{Error, Result},
    inference,
    model::Model,
    source::{self, Uri},
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: actiond doctor config.toml\n\n\
                        Exit code: 0 when the main job can run here, 1 when something that it needs is missing.")]
pub struct Args {
    /// A config whose model and cameras are looked at, too
    config: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// How a thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// It is here and works.
    Good,
    /// It is not here; the main job runs without it.
    Absent,
    /// The main job can't run like this.
    Bad,
}

#[derive(Debug, Clone, Serialize)]
struct Finding {
    area: &'static str,
    name: String,
    state: State,
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

impl Finding {
    fn good(area: &'static str, name: impl Into<String>, found: impl Into<String>) -> Self {
        Finding { area, name: name.into(), state: State::Good, found: found.into(), mend: None }
    }

    fn absent(area: &'static str, name: impl Into<String>, found: impl Into<String>) -> Self {
        Finding { state: State::Absent, ..Finding::good(area, name, found) }
    }

    fn bad(area: &'static str, name: impl Into<String>, found: impl Into<String>) -> Self {
        Finding { state: State::Bad, ..Finding::good(area, name, found) }
    }

    fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = Some(mend.into());
        self
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    version: &'static str,
    ready: bool,
    findings: &'a [Finding],
}

pub fn run(args: &Args) -> Result<()> {
    let plan = args.config.as_deref().map(|path| (path, Plan::load(path)));
    let mut findings = board();
    findings.extend(backends());
    findings.extend(opencv_library());
    findings.extend(gstreamer_elements());
    findings.extend(usb_cameras());
    match &plan {
        None => findings.push(model(&Plan::new().model)),
        Some((path, Ok(plan))) => {
            findings.push(Finding::good("config", path.display().to_string(), "no errors"));
            findings.push(model(&plan.model));
            findings.extend(plan.cameras.iter().map(|camera| configured(&camera.id, &camera.source)));
        }
        Some((path, Err(errors))) => findings.extend(
            errors.iter().map(|e| Finding::bad("config", path.display().to_string(), e.to_string()).mend("correct it")),
        ),
    }

    let bad = findings.iter().filter(|f| f.state == State::Bad).count();
    if args.json {
        let report = Report { version: env!("CARGO_PKG_VERSION"), ready: bad == 0, findings: &findings };
        super::say_json(&report)?;
    } else {
        super::say(&table(&findings, std::io::stdout().is_terminal()))?;
    }
    match bad {
        0 => Ok(()),
        1 => Err(Error::unavailable("one thing that actiond needs is missing here")),
        _ => Err(Error::unavailable(format!("{bad} things that actiond needs are missing here"))),
    }
}

fn board() -> Vec<Finding> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    // The device tree ends its strings with a NUL.
    let model = read("/proc/device-tree/model").trim_end_matches('\0').to_owned();
    let board = if model.is_empty() { format!("a PC ({})", std::env::consts::ARCH) } else { model };
    let mut findings = vec![Finding::good("board", "model", board)];
    if let Some(release) = read("/etc/nv_tegra_release").lines().next() {
        findings.push(Finding::good("board", "jetson linux", release.trim_start_matches("# ")));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let features = cpu_features();
    let fast = features.iter().any(|f| ["avx2", "avx512f", "dotprod"].contains(f));
    let cpu =
        format!("{cores} cores, {}", if features.is_empty() { "no vector units".into() } else { features.join(" ") });
    findings.push(match fast {
        true => Finding::good("board", "processor", cpu),
        false => Finding::absent("board", "processor", cpu)
            .mend("without AVX2 or dot products it is slow; give the daemon a GPU, or a model with fewer channels"),
    });
    let kilobytes = read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    if let Some(kilobytes) = kilobytes {
        findings.push(Finding::good("board", "memory", format!("{:.1} GiB", kilobytes as f64 / f64::from(1 << 20))));
    }
    findings
}

fn cpu_features() -> Vec<&'static str> {
    let mut features = Vec::new();
    macro_rules! ask {
        ($has:ident: $($name:tt)*) => { $(if std::arch::$has!($name) { features.push($name); })* };
    }
    #[cfg(target_arch = "x86_64")]
    ask!(is_x86_feature_detected: "sse4.1" "avx2" "fma" "avx512f" "avx512vnni");
    #[cfg(target_arch = "aarch64")]
    ask!(is_aarch64_feature_detected: "neon" "dotprod" "fp16" "i8mm");
    features
}

fn backends() -> Vec<Finding> {
    let all = inference::available();
    let any = all.iter().any(|b| b.usable);
    all.into_iter()
        .map(|backend| {
            let state = match (backend.usable, any) {
                (true, _) => State::Good,
                (false, true) => State::Absent,
                (false, false) => State::Bad,
            };
            Finding { area: "inference", name: backend.name.into(), state, found: backend.found, mend: backend.mend }
        })
        .collect()
}

fn opencv_library() -> Vec<Finding> {
    let version = match opencv::core::get_version_string() {
        Ok(version) => Finding::good("opencv", "library", version),
        Err(e) => Finding::bad("opencv", "library", e.to_string()).mend("apt install libopencv-dev"),
    };
    let information = opencv::core::get_build_information().unwrap_or_default();
    let cuda = match built_with_cuda(&information) {
        None => Finding::absent("opencv", "cuda", "built without it: flow is computed on the CPU")
            .mend("on a Jetson or a PC with an NVIDIA GPU, build OpenCV with CUDA; a CPU needs nothing"),
        Some(version) => Finding::good("opencv", "cuda", version),
    };
    vec![version, cuda]
}

/// The version in `NVIDIA CUDA: YES (ver 12.2, CUFFT CUBLAS)`.
fn built_with_cuda(information: &str) -> Option<String> {
    let line = information.lines().find_map(|line| line.trim().strip_prefix("NVIDIA CUDA:"))?.trim();
    let version = line.strip_prefix("YES")?;
    Some(version.trim().trim_matches(['(', ')']).trim_start_matches("ver ").to_owned())
}

/// What GStreamer must or may bring: what for, whether the main job needs it, and the elements of which one will do,
/// hardware first, and last the one that a package brings everywhere.
const ELEMENTS: [(&str, bool, &[&str]); 17] = [
    ("any pipeline", true, &["decodebin"]),
    ("colours", true, &["videoconvert"]),
    ("rotated clips", true, &["videoflip"]),
    ("MP4, MOV", true, &["qtdemux"]),
    ("Matroska, WebM", true, &["matroskademux"]),
    ("AVI", false, &["avidemux"]),
    ("MPEG-TS", false, &["tsdemux"]),
    ("RTSP", true, &["rtspsrc"]),
    ("HTTP", false, &["souphttpsrc"]),
    ("H.264", true, &["nvv4l2decoder", "nvh264dec", "vah264dec", "v4l2h264dec", "openh264dec", "avdec_h264"]),
    ("H.265", false, &["nvv4l2decoder", "nvh265dec", "vah265dec", "v4l2h265dec", "libde265dec", "avdec_h265"]),
    ("VP8", false, &["nvv4l2decoder", "avdec_vp8", "vp8dec"]),
    ("VP9", false, &["nvv4l2decoder", "avdec_vp9", "vp9dec"]),
    ("AV1", false, &["nvv4l2decoder", "vaav1dec", "dav1ddec", "av1dec"]),
    ("MPEG-4", false, &["avdec_mpeg4"]),
    ("Motion JPEG", false, &["avdec_mjpeg", "jpegdec"]),
    ("CSI cameras", false, &["nvarguscamerasrc"]),
];

fn gstreamer_elements() -> Vec<Finding> {
    if let Err(e) = source::gstreamer::init() {
        return vec![Finding::bad("gstreamer", "library", e.to_string()).mend("apt install libgstreamer1.0-0")];
    }
    let mut findings =
        vec![Finding::good("gstreamer", "library", gst::version_string().trim_start_matches("GStreamer "))];
    for (what, needed, candidates) in ELEMENTS {
        // Of those that are here, the one that GStreamer will take.
        let here = candidates.iter().rev().filter_map(|name| gst::ElementFactory::find(name));
        let found = here.max_by_key(|factory| factory.rank());
        findings.push(match found {
            Some(factory) => {
                // A codec's element says whether it is the chip or the processor that decodes.
                let hardware = factory.metadata("klass").is_some_and(|klass| klass.contains("Hardware"))
                    || factory.name().starts_with("nvv4l2");
                let note = if hardware { " (hardware)" } else { "" };
                Finding::good("gstreamer", what, format!("{}{note}", factory.name()))
            }
            None => {
                let element = candidates.last().copied().unwrap_or_default();
                let found = format!("no {}", candidates.join(", "));
                let finding = if needed {
                    Finding::bad("gstreamer", what, found)
                } else {
                    Finding::absent("gstreamer", what, found)
                };
                match source::gstreamer::package_of(element) {
                    Some("nvidia-l4t-gstreamer") => finding.mend("only on a Jetson: apt install nvidia-l4t-gstreamer"),
                    Some(package) => finding.mend(format!("apt install {package}")),
                    None => finding,
                }
            }
        });
    }
    findings
}

fn usb_cameras() -> Vec<Finding> {
    let cameras = source::nokhwa::cameras();
    if cameras.is_empty() {
        return vec![
            Finding::absent("cameras", "usb", "none is plugged in")
                .mend("network cameras and files need none; else plug one in, and see that /dev/video0 appears"),
        ];
    }
    cameras
        .into_iter()
        .map(|(path, name)| {
            let uri = format!("usb:{}", path.display());
            match std::fs::File::options().read(true).write(true).open(&path) {
                Ok(_) => Finding::good("cameras", uri, name),
                Err(e) => Finding::absent("cameras", uri, format!("{name}: {e}"))
                    .mend("sudo usermod -aG video $USER, and log in again"),
            }
        })
        .collect()
}

fn model(folder: &Path) -> Finding {
    let name = folder.display().to_string();
    match Model::load(folder) {
        Ok(model) => {
            let streams = model.stream_names().join(" + ");
            let found =
                format!("{}: {streams}, {} labels, every file is whole", model.manifest.name, model.labels.len());
            Finding::good("model", name, found)
        }
        Err(e) => Finding::bad("model", name, e.to_string()).mend("install the model again, or name another one"),
    }
}

/// A camera of the config, as far as one sees without opening it.
fn configured(id: &str, uri: &Uri) -> Finding {
    if let Uri::Usb(device) = uri
        && !device.exists()
    {
        return Finding::bad("cameras", id, format!("{uri} is not there"))
            .mend("plug it in; `usb` above has those that are, and /dev/v4l/by-id names that stay");
    }
    let missing = uri.path().filter(|path| !path.exists());
    match missing {
        Some(_) => Finding::bad("cameras", id, format!("{uri} does not exist")).mend("check the path of its source"),
        None => Finding::good("cameras", id, uri.to_string()),
    }
}

/// The findings for a person: aligned, one line each, the mend below what needs one.
fn table(findings: &[Finding], colored: bool) -> String {
    let paint = |text: &str, color: &str| if colored { format!("\x1b[{color}m{text}\x1b[0m") } else { text.to_owned() };
    let widest = |of: fn(&Finding) -> &str| findings.iter().map(|f| of(f).chars().count()).max().unwrap_or(0);
    let (areas, names) = (widest(|f| f.area), widest(|f| &f.name));
    let mut out = String::new();
    let mut area = "";
    for (number, finding) in findings.iter().enumerate() {
        let shown = if finding.area == area { "" } else { finding.area };
        area = finding.area;
        let mark = match finding.state {
            State::Good => paint("✓", "32"),
            State::Absent => paint("–", "33"),
            State::Bad => paint("✗", "31"),
        };
        let heading = paint(&format!("{shown:areas$}"), "1");
        // Writing to a String can't fail.
        let _ = writeln!(out, "{heading}  {mark} {:names$}  {}", finding.name, finding.found);
        // What mends several in a row is said once, below the last.
        let again = findings.get(number + 1).is_some_and(|next| next.area == area && next.mend == finding.mend);
        if let Some(mend) = finding.mend.as_ref().filter(|_| finding.state != State::Good && !again) {
            let _ = writeln!(out, "{:areas$}    {:names$}  {}", "", "", paint(&format!("→ {mend}"), "2"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_aligned_and_mends_stand_below_what_they_mend() {
        let findings = [
            Finding::good("board", "model", "a PC").mend("never shown"),
            Finding::absent("cameras", "csi", "none").mend("plug one in"),
            Finding::absent("cameras", "usb", "none").mend("plug one in"),
            Finding::bad("cameras", "door é", "gone"),
        ];
        let plain = "\
board    ✓ model   a PC
cameras  – csi     none
         – usb     none
                   → plug one in
         ✗ door é  gone
";
        assert_eq!(table(&findings, false), plain);
        let colored = table(&findings, true);
        assert!(
            colored.contains("\x1b[31m✗\x1b[0m door é") && colored.contains("\x1b[1mboard  \x1b[0m  "),
            "{colored}"
        );
    }

    #[test]
    fn opencv_tells_of_cuda_in_its_build_information() {
        let with =
            "  Other:\n    NVIDIA CUDA:                   YES (ver 12.2, CUFFT CUBLAS)\n      NVIDIA GPU arch: 87";
        assert_eq!(built_with_cuda(with).as_deref(), Some("12.2, CUFFT CUBLAS"));
        assert_eq!(built_with_cuda("    NVIDIA CUDA:                   NO"), None);
        assert_eq!(built_with_cuda("no such line"), None);
    }

    #[test]
    fn what_is_missing_comes_with_the_package_that_brings_it() {
        for (what, _, candidates) in ELEMENTS {
            let last = candidates.last().copied().unwrap_or_default();

            assert!(source::gstreamer::package_of(last).is_some(), "{what}: {last}");
        }
    }

    #[test]
    fn a_model_that_is_not_there_is_bad_and_says_what_to_do() {
        let finding = model(Path::new("/nowhere"));
        assert_eq!(finding.state, State::Bad);
        assert!(finding.found.contains("no such model") && finding.mend.is_some());
    }

    #[test]
    fn a_configured_recording_must_exist_and_passwords_stay_hidden() {
        assert_eq!(configured("a", &Uri::File("/nowhere.mp4".into())).state, State::Bad);
        let usb = configured("u", &Uri::Usb("/dev/video4711".into()));
        assert_eq!((usb.state, usb.found.as_str()), (State::Bad, "usb:/dev/video4711 is not there"));
        let camera = configured("b", &Uri::Rtsp("rtsp://u:hunter2@h/s".into()));
        assert_eq!((camera.state, camera.found.as_str()), (State::Good, "rtsp://u:***@h/s"));
    }

    #[test]
    fn this_machine_has_findings_of_every_kind() {
        let all: Vec<Finding> = [board(), opencv_library(), gstreamer_elements(), usb_cameras()].concat();
        for area in ["board", "opencv", "gstreamer", "cameras"] {
            assert!(all.iter().any(|f| f.area == area), "{area}");
        }
        assert!(all.iter().all(|f| !f.found.is_empty() && (f.state == State::Good) | f.mend.is_some()));
    }
}
