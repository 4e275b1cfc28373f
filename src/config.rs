//! The config: [`File`] as typed, [`Plan`] as checked. An error says file, line, column, what is wrong and what is known
//! there; every error of a file is found in one go.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use toml::Spanned;

use crate::{
    error::{Error, Result},
    journal, mask,
    model::Decision,
    publish,
    scale::Region,
    secret::{self, Secret},
    source::{self, Uri},
    web,
};

/// The shipped model, beside the binary's project folder or in the working folder.
pub const DEFAULT_MODEL: &str = "models/default";
/// Frames from one hop to the next for a model that says nothing of it; see [`crate::model::Model::hop`].
pub const DEFAULT_HOP: usize = 8;
pub const DEFAULT_JOURNAL: &str = "journal";
/// Off: of 51 events of real clips it moved one by two hops; see `docs/performance.md`.
pub const DEFAULT_SKIP_STILL: bool = false;

/// Everything that `run` needs, checked.
#[derive(Debug, Clone)]
pub struct Plan {
    pub device: String,
    pub model: PathBuf,
    /// Tried in this order; empty: every backend, the fastest first.
    pub backends: Vec<String>,
    /// How a hop is computed; what suits the model ([`crate::inference::natural_mode`]) where it is left out.
    pub mode: Option<Mode>,
    /// Frames from one hop to the next; the model's own where it is left out.
    pub hop: Option<usize>,
    pub cameras: Vec<Camera>,
    pub events: Decision,
    pub journal: journal::Config,
    pub publish: publish::Config,
    /// Where there is a `[web]`.
    pub web: Option<web::Settings>,
}

#[derive(Debug, Clone)]
pub struct Camera {
    pub id: String,
    pub source: Uri,
    pub options: source::Options,
    pub region: Region,
    /// What nothing may see.
    pub mask: Vec<mask::Shape>,
    /// The folder that its frames are recorded to, if they are.
    pub frames: Option<PathBuf>,
    /// While nothing moves, leave out flow and streams; see [`still`](crate::still).
    pub skip_still: bool,
}

/// How a hop is computed; see `docs/architecture.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The window, computed whole at each hop.
    #[default]
    Dense,
    /// The same numbers as dense: only what new frames and the window's edges touch is computed.
    Window,
    /// The real past in place of the window's beginning; no added delay.
    Carried,
    /// No window: fully convolutional in time. The least work; its scores look at a place further back.
    Continuous,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Mode::Dense => "dense",
            Mode::Window => "window",
            Mode::Carried => "carried",
            Mode::Continuous => "continuous",
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    device: Device,
    model: Model,
    camera: Vec<CameraEntry>,
    events: Decision,
    journal: Option<Spanned<journal::Config>>,
    mqtt: Option<Spanned<publish::MqttConfig>>,
    webhook: Vec<Spanned<publish::WebhookConfig>>,
    command: Vec<Spanned<publish::CommandConfig>>,
    web: Option<web::Config>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Device {
    id: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Model {
    path: Option<PathBuf>,
    backend: Vec<Spanned<String>>,
    mode: Option<Mode>,
    hop: Option<Spanned<usize>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CameraEntry {
    id: Spanned<String>,
    source: Option<Spanned<String>>,
    source_file: Option<Spanned<PathBuf>>,
    region: Option<Spanned<Region>>,
    #[serde(default)]
    mask: Vec<Spanned<mask::Shape>>,
    skip_still: Option<bool>,
    #[serde(default)]
    realtime: bool,
    #[serde(default)]
    rtsp_transport: source::RtspTransport,
}

impl Plan {
    /// What `run` does without a config file.
    pub fn new() -> Self {
        Plan {
            device: host_name(),
            model: default_model(),
            backends: Vec::new(),
            mode: None,
            hop: None,
            cameras: Vec::new(),
            events: Decision::default(),
            journal: journal::Config::in_folder(Path::new(DEFAULT_JOURNAL)),
            publish: publish::Config::default(),
            web: None,
        }
    }

    /// Reads and checks a config file. Relative paths in it start from its folder.
    ///
    /// Errors: all that were found, each with line and column.
    pub fn load(path: &Path) -> Result<Plan, Vec<Error>> {
        let name = path.display().to_string();
        let text = read(path, &name).map_err(|e| vec![e])?;
        if secret::stands_in(&text) && readable_by_all(path) {
            log::warn!(
                "{name} holds a password and every user of this machine can read it: chmod o-r {name}, or name it by \
                 ${{VARIABLE}} or a ..._file key"
            );
        }
        Plan::parse(&text, &name, path.parent().unwrap_or(Path::new("")))
    }

    /// As [`Plan::load`], of a text: `name` is what errors call it, `folder` where its relative paths start.
    pub fn parse(text: &str, name: &str, folder: &Path) -> Result<Plan, Vec<Error>> {
        let (file, mut errors) = parse_all::<File>(text, name);
        let plan = file.map(|file| check(file, text, name, folder, &mut errors));
        match plan {
            Some(plan) if errors.is_empty() => Ok(plan),
            _ => {
                errors.sort_by_key(|(place, _)| *place);
                Err(errors.into_iter().map(|(_, e)| e).collect())
            }
        }
    }
}

impl Default for Plan {
    fn default() -> Self {
        Plan::new()
    }
}

/// A camera given on the command line; `taken` are the ids that there are.
pub fn camera_from_argument(source: &str, taken: &[Camera]) -> Result<Camera> {
    let uri = Uri::parse(source)?;
    let mut id = uri.short_name();
    if taken.iter().any(|c| c.id == id) {
        id = (2..).map(|n| format!("{id}-{n}")).find(|id| taken.iter().all(|c| c.id != *id)).unwrap_or(id);
    }
    Ok(Camera {
        id,
        source: uri,
        options: source::Options::default(),
        region: Region::WHOLE,
        mask: Vec::new(),
        frames: None,
        skip_still: DEFAULT_SKIP_STILL,
    })
}

/// An error and where in the text it is.
type Placed = (usize, Error);

fn check(file: File, text: &str, name: &str, folder: &Path, errors: &mut Vec<Placed>) -> Plan {
    let at = |span: std::ops::Range<usize>, what: String| {
        let (line, column) = position(text, span.start);
        (span.start, Error::config(format!("{name}:{line}:{column}: {what}")))
    };
    let mut plan = Plan::new();
    if let Some(id) = file.device.id {
        if !is_id(id.get_ref()) {
            errors.push(at(id.span(), format!("`{}` can't be a device's id: {ID_RULE}", id.get_ref())));
        }
        plan.device = id.into_inner();
    }
    if let Some(path) = file.model.path {
        plan.model = folder.join(path);
    }
    for backend in file.model.backend {
        if let Err(e) = crate::inference::backend(backend.get_ref()) {
            errors.push(at(backend.span(), e.to_string()));
        }
        plan.backends.push(backend.into_inner());
    }
    plan.mode = file.model.mode;
    if let Some(hop) = file.model.hop {
        if !(1..=crate::ring::WINDOW).contains(hop.get_ref()) {
            errors.push(at(
                hop.span(),
                format!("a hop of {} frames is not within 1..{}", hop.get_ref(), crate::ring::WINDOW),
            ));
        }
        plan.hop = Some(hop.into_inner());
    }
    if let Some(journal) = file.journal {
        if let Some(fault) = journal.get_ref().fault() {
            errors.push(at(journal.span(), format!("[journal]: {fault}")));
        }
        let journal = journal.into_inner();
        let path = match journal.path.as_os_str().is_empty() {
            true => plan.journal.path,
            false => folder.join(&journal.path),
        };
        plan.journal = journal::Config { path, ..journal };
    }
    for (name, span, fault) in [file.mqtt.as_ref().map(|m| ("[mqtt]", m.span(), m.get_ref().fault()))]
        .into_iter()
        .flatten()
        .chain(file.webhook.iter().map(|w| ("[[webhook]]", w.span(), w.get_ref().fault())))
        .chain(file.command.iter().map(|c| ("[[command]]", c.span(), c.get_ref().fault())))
    {
        if let Some(fault) = fault {
            errors.push(at(span, format!("{name}: {fault}")));
        }
    }
    plan.publish.mqtt = file.mqtt.map(Spanned::into_inner);
    plan.publish.webhook = file.webhook.into_iter().map(Spanned::into_inner).collect();
    plan.publish.command = file.command.into_iter().map(Spanned::into_inner).collect();
    plan.publish.relative_to(folder);
    plan.events = file.events;
    plan.web = file.web.and_then(|web| {
        web.settings(folder).map_err(|(span, e)| errors.push(at(span.unwrap_or(0..0), format!("[web] {e}")))).ok()
    });
    if file.camera.is_empty() && errors.is_empty() {
        errors.push((0, Error::config(format!("{name}: there is no [[camera]] in it; each needs an id and a source"))));
    }
    for entry in file.camera {
        let id = entry.id.get_ref();
        if !is_id(id) {
            errors.push(at(entry.id.span(), format!("`{id}` can't be a camera's id: {ID_RULE}")));
        } else if plan.cameras.iter().any(|c| c.id == *id) {
            errors.push(at(entry.id.span(), format!("there is a camera `{id}` already; each needs an id of its own")));
        }
        let skip_still = entry.skip_still.unwrap_or(DEFAULT_SKIP_STILL);
        let mut region = Region::WHOLE;
        if let Some(given) = entry.region {
            region = *given.get_ref();
            let [x, y, w, h] = region.0;
            let inside = |from: f64, extent: f64| from >= 0.0 && extent > 0.0 && from + extent <= 1.0 + 1e-9;
            if !(inside(x, w) && inside(y, h)) {
                let what = format!(
                    "region {:?} does not lie within the picture: it is x, y, width, height as fractions of it (0 to 1)",
                    region.0
                );
                errors.push(at(given.span(), what));
            }
        }
        for shape in &entry.mask {
            if let Err(what) = shape.get_ref().check() {
                errors.push(at(shape.span(), what));
            }
        }
        let (span, source) = match (&entry.source, &entry.source_file) {
            (Some(source), None) => (source.span(), secret::expand(source.get_ref())),
            (None, Some(file)) => {
                let source = Secret::from_file(&folder.join(file.get_ref()));
                (file.span(), source.map(|s| s.expose().to_owned()))
            }
            (Some(_), Some(file)) => (file.span(), Err(Error::config("give `source` or `source_file`, not both"))),
            (None, None) => (entry.id.span(), Err(Error::config(format!("the camera `{id}` has no source")))),
        };
        match source.and_then(|source| Uri::parse(&source)) {
            Ok(uri) => {
                let uri = uri.relative_to(folder);
                let options = source::Options {
                    realtime: entry.realtime,
                    rtsp_transport: entry.rtsp_transport,
                    ..source::Options::default()
                };
                let mask = entry.mask.into_iter().map(Spanned::into_inner).collect();
                let id = entry.id.into_inner();
                plan.cameras.push(Camera { id, source: uri, options, region, mask, frames: None, skip_still });
            }
            Err(e) => errors.push(at(span, e.to_string())),
        }
    }
    plan
}

/// Reads a config's `[events]` alone: the rest may be there or not.
///
/// Errors: the first that was found, with line and column.
pub fn events(path: &Path) -> Result<Decision> {
    let name = path.display().to_string();
    Ok(parse_toml::<File>(&read(path, &name)?, &name)?.events)
}

/// A text file; one byte that is damaged has a place like any other mistake.
fn read(path: &Path, name: &str) -> Result<String> {
    let bytes = fs::read(path).map_err(|e| Error::config(format!("cannot read {name}")).caused_by(e))?;
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let (line, column) = position(&String::from_utf8_lossy(&e.as_bytes()[..at]), at);
        Error::config(format!("{name}:{line}:{column}: byte {:#04x} is not UTF-8 text", e.as_bytes()[at]))
    })
}

fn readable_by_all(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).is_ok_and(|m| m.permissions().mode() & 0o004 != 0)
}

const ID_RULE: &str = "letters, digits, `-`, `_` and `.` only, as it becomes part of MQTT topics and file names";

fn is_id(id: &str) -> bool {
    !id.is_empty() && id.len() <= 64 && id.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// The model in the working folder, or that of the source tree or installation that the binary lies in.
fn default_model() -> PathBuf {
    let here = PathBuf::from(DEFAULT_MODEL);
    if here.exists() {
        return here;
    }
    let installed = std::env::current_exe().ok().and_then(|exe| {
        exe.ancestors().skip(1).take(4).map(|folder| folder.join(DEFAULT_MODEL)).find(|path| path.exists())
    });
    installed.unwrap_or(here)
}

fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim().replace(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c), "-");
    if name.is_empty() { "actiond".into() } else { name }
}

/// Parses TOML into `T`; the error says file, line, column, what is wrong, and the nearest known key.
pub fn parse_toml<T: DeserializeOwned>(text: &str, name: &str) -> Result<T> {
    toml::from_str(text).map_err(|e| located(&e, text, name))
}

/// Parses TOML and finds all errors in it: after each, the line at fault is left out and the rest read again.
fn parse_all<T: DeserializeOwned>(text: &str, name: &str) -> (Option<T>, Vec<Placed>) {
    let mut errors: Vec<Placed> = Vec::new();
    let mut rest = text.to_owned();
    // More than this many errors in one config help nobody.
    for _ in 0..20 {
        let e = match toml::from_str(&rest) {
            Ok(parsed) => return (Some(parsed), errors),
            Err(e) => e,
        };
        // What is missing may only be missing because its line was left out.
        if errors.is_empty() || !e.message().starts_with("missing field") {
            errors.push((e.span().map_or(0, |s| s.start), located(&e, text, name)));
        }
        let Some(span) = e.span() else { break };
        let start = rest[..span.start.min(rest.len())].rfind('\n').map_or(0, |i| i + 1);
        // Without its heading, what stands in a table would be read as part of the one before.
        let until = if rest[start..].starts_with('[') { "\n[" } else { "\n" };
        let end = rest[start..].find(until).map_or(rest.len(), |i| start + i);
        let multi_line = span.end > end;
        let blank = start == end || rest[start..end].starts_with('#');
        if multi_line || blank {
            break;
        }
        // The same length, so that later positions stay true.
        let comment: String = rest[start..end].bytes().map(|b| if b == b'\n' { '\n' } else { '#' }).collect();
        rest.replace_range(start..end, &comment);
    }
    (None, errors)
}

fn located(e: &toml::de::Error, text: &str, name: &str) -> Error {
    // What was typed in the wrong place may be a password.
    let what = source::redact(&e.message().replace('\n', "; "));
    let hint = nearest_known(&what).map(|k| format!("; did you mean `{k}`?")).unwrap_or_default();
    match e.span() {
        Some(span) => {
            let (line, column) = position(text, span.start);
            Error::config(format!("{name}:{line}:{column}: {what}{hint}"))
        }
        None => Error::config(format!("{name}: {what}{hint}")),
    }
}

/// Line and column, from 1, of a byte offset.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line_start = before.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
    let line = before.iter().filter(|&&b| b == b'\n').count() + 1;
    (line, String::from_utf8_lossy(&before[line_start..]).chars().count() + 1)
}

/// Of the names that serde lists in "unknown field `x`, expected one of `a`, `b`", the nearest to x.
fn nearest_known(message: &str) -> Option<String> {
    let rest = message.strip_prefix("unknown field ").or_else(|| message.strip_prefix("unknown variant "))?;
    let mut names = rest.split('`').skip(1).step_by(2);
    let unknown = names.next()?;
    nearest(unknown, names).map(str::to_owned)
}

/// The known name that `unknown` most likely is a slip of, if one is near enough.
pub fn nearest<'a>(unknown: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|k| (strsim::damerau_levenshtein(unknown, k), k))
        .min()
        .filter(|(distance, k)| *distance <= k.len().max(unknown.len()).div_ceil(3))
        .map(|(_, k)| k)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Plan, Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("actiond.toml");
        fs::write(&path, text).unwrap();
        let prefix = format!("{}/", folder.path().display());
        Plan::load(&path).map_err(|errors| errors.iter().map(|e| e.to_string().replace(&prefix, "")).collect())
    }

    const GOOD: &str = r#"
[device]
id = "dock-3"
[model]
path = "models/default"
backend = ["openvino", "cpu", "tract"]
mode = "dense"
hop = 8
[[camera]]
id = "door"
source = "rtsp://user@10.0.0.5/stream"
region = [0.1, 0.0, 0.8, 1.0]
[[camera]]
id = "yard"
source = "usb:0"
skip_still = true
[events]
start = 0.6
end = 0.4
ignore = ["nothing"]
[events.label.falling]
by = "peak"
[journal]
path = "events"
"#;

    #[test]
    fn the_documented_config_is_read() {
        let plan = load(GOOD).unwrap();
        assert_eq!(plan.device, "dock-3");
        assert_eq!(plan.cameras.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), ["door", "yard"]);
        assert_eq!(plan.cameras[0].region, Region([0.1, 0.0, 0.8, 1.0]));
        assert_eq!((plan.cameras[0].skip_still, plan.cameras[1].skip_still), (DEFAULT_SKIP_STILL, true));
        assert_eq!((plan.events.start, plan.hop), (Some(0.6), Some(8)));
        assert!(plan.journal.path.ends_with("events") && plan.journal.path.is_absolute());
    }

    #[test]
    fn every_error_is_found_with_its_place() {
        let text = GOOD
            .replace("hop = 8", "hopp = 8")
            .replace("start = 0.6", "start = \"high\"")
            .replace("id = \"yard\"", "id = \"door\"")
            .replace("usb:0", "ftp://x")
            .replace("0.8, 1.0", "0.95, 1.0");
        let errors = load(&text).unwrap_err();
        let expected = [
            "actiond.toml:8:1: ",
            "actiond.toml:18:9: ",
            "actiond.toml:12:10: ",
            "actiond.toml:14:6: ",
            "actiond.toml:15:10: ",
        ];
        assert_eq!(errors.len(), expected.len(), "{errors:#?}");
        for place in expected {
            assert!(errors.iter().any(|e| e.starts_with(place)), "{place} in {errors:#?}");
        }
        assert!(errors[0].ends_with("did you mean `hop`?"), "{}", errors[0]);
    }

    #[test]
    fn one_mistake_is_one_error() {
        for (good, bad, place, word) in [
            ("[device]", "[devise]", "2:2", "did you mean `device`?"),
            ("backend = [\"openvino\"", "backend = [\"opnvino\"", "6:12", "openvino"),
            ("mode = \"dense\"", "mode = \"densse\"", "7:8", "did you mean `dense`?"),
            ("hop = 8", "hop = 0", "8:7", "1..64"),
            ("hop = 8", "hop = 8\nhop = 9", "9:1", "duplicate"),
            ("id = \"door\"", "id = \"front door\"", "10:6", "letters"),
            ("id = \"door\"\n", "", "9:1", "missing field `id`"),
            ("by = \"peak\"", "by = \"pek\"", "22:6", "did you mean `peak`?"),
        ] {
            let errors = load(&GOOD.replace(good, bad)).unwrap_err();
            assert_eq!(errors.len(), 1, "{errors:#?}");
            assert!(errors[0].starts_with(&format!("actiond.toml:{place}: ")), "{bad}: {}", errors[0]);
            assert!(errors[0].contains(word), "{bad}: {}", errors[0]);
        }
    }

    #[test]
    fn a_config_without_cameras_says_so() {
        assert!(load("").unwrap_err()[0].contains("no [[camera]]"));
    }

    #[test]
    fn no_byte_of_a_config_can_make_it_panic() {
        for i in 0..GOOD.len() {
            for flip in [1u8, 0x20, 0x80] {
                let mut bytes = GOOD.as_bytes().to_vec();
                bytes[i] ^= flip;
                if let Ok(text) = String::from_utf8(bytes) {
                    let (file, mut errors) = parse_all::<File>(&text, "x");
                    if let Some(file) = file {
                        check(file, &text, "x", Path::new("/"), &mut errors);
                    }
                }
            }
        }
    }

    #[test]
    fn sources_of_one_name_get_numbers() {
        let first = camera_from_argument("clips/walk.mp4", &[]).unwrap();
        assert_eq!(first.id, "walk");
        let second = camera_from_argument("other/walk.mp4", std::slice::from_ref(&first)).unwrap();
        assert_eq!(second.id, "walk-2");
    }
}
