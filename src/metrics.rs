//! What the daemon counts, as text in OpenMetrics' format, which Prometheus reads. The rooms keep their own numbers; here
//! they get names when somebody asks.
//!
//! Something new is counted in one line: `let late = metrics.add("actiond_late", "What it is", Counter::default())` gives
//! a handle that can be cloned and costs an atomic addition; a counter's name ends in `_total` by itself.

use std::{
    fmt, fs,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabel, EncodeLabelSet, EncodeMetric, LabelSetEncoder, MetricEncoder, text},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::ConstGauge,
        histogram::Histogram,
    },
    registry::{Metric, Registry},
};
use serde::Serialize;

use crate::{
    camera::Camera,
    event::{Event, Phase},
    fault::Fault,
    journal,
    load::Standing,
    publish,
    recognize::Spent,
    tell::{About, Engine},
};

/// The content type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A camera without a picture for so long is not live.
const SILENT: Duration = Duration::from_secs(10);

/// A recognizer that has not gone round for so long hangs; the slowest full-size hop takes a few seconds.
const STUCK: Duration = Duration::from_secs(30);

/// How long something took, from half a millisecond to ten seconds.
pub type Timing = Histogram;

pub fn timing() -> Timing {
    Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0])
}

type Labels = Vec<(&'static str, String)>;

/// The daemon's numbers.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    events: Family<Labels, Counter>,
    watched: Mutex<Option<Watched>>,
    engine: Arc<Mutex<Option<Engine>>>,
    began: Instant,
    /// Milliseconds from `began` to the recognizer's last round.
    round: AtomicU64,
}

/// What is looked at when somebody asks.
#[derive(Debug, Clone)]
pub struct Watched {
    pub cameras: Vec<Arc<Camera>>,
    pub spent: Spent,
    pub standing: Arc<Mutex<Standing>>,
    pub about: About,
    pub journal: Arc<journal::Shared>,
}

/// How the daemon is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    /// `ok`, or what is wrong.
    pub status: String,
    pub cameras: Vec<CameraHealth>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CameraHealth {
    pub id: String,
    /// `live`, `silent` (no picture for ten seconds), `frozen`, `black`, `covered`, `paused`, or `failed`.
    pub state: &'static str,
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(System { root: "/".into() }));
        let metrics = Metrics {
            registry: Mutex::new(registry),
            events: Family::default(),
            watched: Mutex::default(),
            engine: Arc::default(),
            began: Instant::now(),
            round: AtomicU64::new(0),
        };
        metrics.add("actiond_events", "Starts, updates and ends of events", metrics.events.clone());
        metrics
    }

    /// Counts one more thing, under a name that begins with `actiond_`.
    pub fn add<M: Metric + Clone>(&self, name: &str, help: &str, metric: M) -> M {
        lock(&self.registry).register(name, help, metric.clone());
        metric
    }

    /// Tells of a daemon's cameras and recognizer from now on.
    pub fn watch(&self, watched: Watched) {
        let seen = Daemon { watched: watched.clone(), engine: self.engine.clone() };
        lock(&self.registry).register_collector(Box::new(seen));
        *lock(&self.watched) = Some(watched);
    }

    /// Tells of the sinks as well.
    pub fn watch_sinks(&self, sinks: Vec<Arc<Mutex<publish::Stats>>>) {
        lock(&self.registry).register_collector(Box::new(Sinks(sinks)));
    }

    /// An event was told.
    pub fn event(&self, event: &Event) {
        let phase = match event.phase {
            Phase::Start => "start",
            Phase::Update => "update",
            Phase::End => "end",
        };
        let labels =
            vec![("camera", event.camera.clone()), ("label", escaped(&event.label)), ("phase", phase.to_owned())];
        self.events.get_or_create(&labels).inc();
    }

    /// What computes now.
    pub fn engine(&self, engine: &Engine) {
        let mut known = lock(&self.engine);
        if known.as_ref() != Some(engine) {
            *known = Some(engine.clone());
        }
    }

    pub fn computes(&self) -> Option<Engine> {
        lock(&self.engine).clone()
    }

    /// The recognizer went round.
    pub fn beat(&self) {
        self.round.store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    pub fn health(&self) -> Health {
        let round = Duration::from_millis(self.round.load(Ordering::Relaxed));
        let Some(watched) = lock(&self.watched).clone() else {
            return Health { status: "starting".into(), cameras: Vec::new() };
        };
        let of = |c: &Arc<Camera>| CameraHealth { id: c.id.clone(), state: state(c) };
        let cameras: Vec<CameraHealth> = watched.cameras.iter().map(of).collect();
        let stuck = self.began.elapsed().saturating_sub(round);
        let status = if stuck > STUCK {
            format!("the recognizer hangs, or loads its model, for {} s", stuck.as_secs())
        } else if !cameras.is_empty() && cameras.iter().all(|c| c.state == "failed" || c.state == "silent") {
            "no camera gives pictures".into()
        } else {
            "ok".into()
        };
        Health { status, cameras }
    }

    /// All of it, in the format that [`CONTENT_TYPE`] names.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // A string takes all that is written to it.
        let _ = text::encode(&mut out, &lock(&self.registry));
        out
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these locks guard is written in one go.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn state(camera: &Camera) -> &'static str {
    camera.status(|s| match s.fault {
        _ if s.failed.is_some() => "failed",
        _ if camera.is_paused() => "paused",
        _ if s.seen.is_none_or(|seen| seen.elapsed() > SILENT) => "silent",
        Some(fault) => name(fault),
        None => "live",
    })
}

fn name(fault: Fault) -> &'static str {
    match fault {
        Fault::Frozen => "frozen",
        Fault::Black => "black",
        Fault::Covered => "covered",
    }
}

/// Label values, each under its name.
#[derive(Debug)]
struct Set<'a>(&'a [(&'a str, &'a str)]);

impl EncodeLabelSet for Set<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> fmt::Result {
        self.0.iter().try_for_each(|(name, value)| (*name, escaped(value)).encode(encoder.encode_label()))
    }
}

/// As the format wants it, which the crate leaves to us: a model's labels may hold anything.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The cameras and the recognizer.
#[derive(Debug)]
struct Daemon {
    watched: Watched,
    engine: Arc<Mutex<Option<Engine>>>,
}

/// One metric of a collector, all its label sets.
fn family(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    kind: MetricType,
    mut each: impl FnMut(&mut MetricEncoder) -> fmt::Result,
) -> fmt::Result {
    each(&mut encoder.encode_descriptor(name, help, None, kind)?)
}

/// A metric without labels.
fn single(encoder: &mut DescriptorEncoder, name: &str, help: &str, metric: &impl EncodeMetric) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

fn put(encoder: &mut MetricEncoder, labels: &[(&str, &str)], metric: &impl EncodeMetric) -> fmt::Result {
    metric.encode(encoder.encode_family(&Set(labels))?)
}

impl Collector for Daemon {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Watched { cameras, spent, standing, about, journal } = &self.watched;
        let encoder = &mut encoder;
        let numbers: Vec<_> = cameras
            .iter()
            .map(|c| (c.id.as_str(), c.status(|s| (s.counts, s.tally, s.reopened, s.fault)), state(c)))
            .collect();
        // By camera: the name, what it is, the number.
        let counters: [(&str, &str, Number); 9] = [
            ("actiond_pictures", "Pictures that came from the source", |(c, ..)| c.pictures),
            ("actiond_frames", "Frames made of them, at 25 fps", |(c, ..)| c.frames),
            ("actiond_frames_repeated", "Frames that show a picture once more", |(c, ..)| c.repeated),
            ("actiond_hops", "Hops computed", |(_, t, ..)| t.hops),
            ("actiond_hops_still", "Hops left out as nothing moved", |(_, t, ..)| t.skipped),
            ("actiond_hops_left_out", "Hops left out as the machine could not keep up", |(_, t, ..)| t.left_out),
            ("actiond_hops_partial", "Hops made without a stream as the machine could not keep up", |(_, t, ..)| {
                t.partial
            }),
            ("actiond_gaps", "Cuts: frames lost, or a source that was away", |(_, t, ..)| t.gaps),
            ("actiond_reconnects", "Times that the source came back after a failure", |(_, _, reopened, _)| *reopened),
        ];
        for (name, help, number) in counters {
            family(encoder, name, help, MetricType::Counter, |e| {
                numbers.iter().try_for_each(|(id, n, _)| put(e, &[("camera", id)], &ConstCounter::new(number(n))))
            })?;
        }
        family(encoder, "actiond_dropped", "Pictures and frames dropped, by where", MetricType::Counter, |e| {
            numbers.iter().try_for_each(|(id, (counts, tally, ..), _)| {
                let edges = [
                    ("source", counts.dropped_at_source),
                    ("rate", counts.dropped_to_rate),
                    // What never came was dropped by nobody.
                    ("recognizer", tally.lost.saturating_sub(counts.away)),
                ];
                edges.iter().try_for_each(|(edge, dropped)| {
                    put(e, &[("camera", id), ("edge", edge)], &ConstCounter::new(*dropped))
                })
            })
        })?;
        family(
            encoder,
            "actiond_camera_up",
            "Whether the camera gives pictures, or would if it were not paused",
            MetricType::Gauge,
            |e| {
                numbers.iter().try_for_each(|(id, _, state)| {
                    let up = !["silent", "failed"].contains(state);
                    put(e, &[("camera", id)], &ConstGauge::new(i64::from(up)))
                })
            },
        )?;
        let help = "Whether pictures come and show nothing, by how";
        family(encoder, "actiond_camera_fault", help, MetricType::Gauge, |e| {
            numbers.iter().try_for_each(|(id, (.., now), _)| {
                [Fault::Frozen, Fault::Black, Fault::Covered].iter().try_for_each(|fault| {
                    let is = i64::from(*now == Some(*fault));
                    put(e, &[("camera", id), ("fault", name(*fault))], &ConstGauge::new(is))
                })
            })
        })?;
        let help = "What a picture took: read (recordings only), scale, flow";
        family(encoder, "actiond_picture_stage_seconds", help, MetricType::Histogram, |e| {
            cameras.iter().try_for_each(|c| {
                let stages = [("read", &c.stages.read), ("scale", &c.stages.scale), ("flow", &c.stages.flow)];
                stages.iter().try_for_each(|(stage, timing)| put(e, &[("camera", &c.id), ("stage", stage)], *timing))
            })
        })?;
        let help = "What a hop took: input, inference of each stream, decide (with the journal)";
        family(encoder, "actiond_hop_stage_seconds", help, MetricType::Histogram, |e| {
            put(e, &[("stage", "input")], &spent.input)?;
            spent
                .streams
                .iter()
                .try_for_each(|(stream, timing)| put(e, &[("stage", "inference"), ("stream", stream)], timing))?;
            put(e, &[("stage", "decide")], &spent.decide)
        })?;
        let help = "How long a camera's newest frame had waited when its hop was begun";
        single(encoder, "actiond_hop_wait_seconds", help, &spent.waited)?;
        let help = "From a camera's newest frame to what was decided of it";
        single(encoder, "actiond_hop_delay_seconds", help, &spent.total)?;

        let standing = *lock(standing);
        let help = "What is left out as the machine cannot keep up: 0 is nothing";
        single(encoder, "actiond_overload_rung", help, &ConstGauge::new(standing.rung as i64))?;
        let help = "Whether it is the hop that is doubled, the weaker stream that is left out, cameras that take turns";
        family(encoder, "actiond_overload_relief", help, MetricType::Gauge, |e| {
            let relief = standing.relief;
            let parts =
                [("hop_doubled", relief.doubled), ("stream_left_out", relief.one_less), ("turns", relief.turns > 1)];
            parts.iter().try_for_each(|(what, is)| put(e, &[("what", what)], &ConstGauge::new(i64::from(*is))))
        })?;
        let help = "Times that the machine could not keep up";
        single(encoder, "actiond_overloads", help, &ConstCounter::new(standing.times))?;
        journal_metrics(encoder, &journal.stats())?;
        let engine = lock(&self.engine).clone();
        family(encoder, "actiond_engine", "What computes, and how", MetricType::Info, |e| {
            let unknown = Engine { backend: "none yet".into(), precision: String::new() };
            let Engine { backend, precision } = engine.as_ref().unwrap_or(&unknown);
            let hop = about.hop.to_string();
            e.encode_info(&Set(&[
                ("backend", backend),
                ("precision", precision),
                ("mode", about.mode.name()),
                ("hop", &hop),
                ("model", &about.model),
                ("version", env!("CARGO_PKG_VERSION")),
            ]))
        })
    }
}

fn journal_metrics(encoder: &mut DescriptorEncoder, stats: &journal::Stats) -> fmt::Result {
    let gauges = [
        ("actiond_journal_bytes", "Size of the journal's files", stats.bytes),
        ("actiond_journal_files", "How many they are", stats.files),
        ("actiond_journal_sequence", "Number of the newest event", stats.newest),
        ("actiond_journal_full", "Whether the disk has no room: events wait in memory", u64::from(stats.full)),
        ("actiond_journal_waiting", "Events that wait in memory for room on the disk", stats.waiting),
    ];
    for (name, help, value) in gauges {
        single(encoder, name, help, &ConstGauge::new(value as i64))?;
    }
    let counters = [
        ("actiond_journal_dropped", "Events dropped as too many waited for room", stats.dropped),
        ("actiond_journal_removed_unread", "Events removed by max_mb before a sink had them", stats.removed_unread),
    ];
    for (name, help, value) in counters {
        single(encoder, name, help, &ConstCounter::new(value))?;
    }
    let help = "Events that a sink's far end has yet to acknowledge";
    family(encoder, "actiond_sink_lag_events", help, MetricType::Gauge, |e| {
        let each = |c: &journal::CursorStats| put(e, &[("sink", &c.name)], &ConstGauge::new(c.unread as i64));
        stats.cursors.iter().try_for_each(each)
    })
}

/// What becomes of events beyond the journal.
#[derive(Debug)]
struct Sinks(Vec<Arc<Mutex<publish::Stats>>>);

impl Collector for Sinks {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let sinks: Vec<publish::Stats> = self.0.iter().map(|sink| lock(sink).clone()).collect();
        family(&mut encoder, "actiond_sink_up", "Whether a sink's far end answers", MetricType::Gauge, |e| {
            sinks.iter().try_for_each(|s| put(e, &[("sink", &s.name)], &ConstGauge::new(i64::from(s.connected))))
        })?;
        type Number = fn(&publish::Stats) -> u64;
        let counters: [(&str, &str, Number); 4] = [
            ("actiond_sink_delivered", "Events that a sink's far end acknowledged", |s| s.delivered),
            ("actiond_sink_refused", "Events that a sink's far end will never take", |s| s.refused),
            ("actiond_sink_lost", "Events that were gone from the journal before a sink could send them", |s| s.lost),
            ("actiond_sink_failures", "Times that a sink's far end failed", |s| s.failures),
        ];
        for (name, help, number) in counters {
            family(&mut encoder, name, help, MetricType::Counter, |e| {
                sinks.iter().try_for_each(|s| put(e, &[("sink", &s.name)], &ConstCounter::new(number(s))))
            })?;
        }
        Ok(())
    }
}

/// One of a camera's numbers.
type Number = fn(&Numbers) -> u64;

type Numbers = (crate::intake::Counts, crate::recognize::Tally, u64, Option<Fault>);

/// The process and the board; what there is not has no metric.
#[derive(Debug)]
struct System {
    /// `/`, but in tests.
    root: PathBuf,
}

impl System {
    fn read(&self, path: &str) -> Option<String> {
        Some(fs::read_to_string(self.root.join(path)).ok()?.trim().to_owned())
    }

    /// The entries of a folder whose names begin with `prefix`, in order.
    fn list(&self, folder: &str, prefix: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root.join(folder)).into_iter().flatten().flatten();
        let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.filter(|n| n.starts_with(prefix)).collect();
        names.sort();
        names
    }

    fn number(&self, path: &str) -> Option<i64> {
        self.read(path)?.parse().ok()
    }

    /// Times that the hardware slowed itself down, by what counts them: a Jetson's over-current and thermal events, x86's
    /// packages.
    fn throttled(&self) -> Vec<(String, u64)> {
        let mut found = Vec::new();
        for hwmon in self.list("sys/class/hwmon", "hwmon") {
            for counter in self.list(&format!("sys/class/hwmon/{hwmon}"), "oc") {
                let count = self.number(&format!("sys/class/hwmon/{hwmon}/{counter}"));
                if let (Some(source), Some(count)) = (counter.strip_suffix("_event_cnt"), count) {
                    found.push((source.to_owned(), count.max(0) as u64));
                }
            }
        }
        let cpus = self.list("sys/devices/system/cpu", "cpu");
        let count = |cpu: &String| {
            self.number(&format!("sys/devices/system/cpu/{cpu}/thermal_throttle/package_throttle_count"))
        };
        // Each core of a package tells the package's number.
        if let Some(count) = cpus.iter().filter_map(count).max() {
            found.push(("cpu".into(), count.max(0) as u64));
        }
        found
    }
}

impl Collector for System {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let encoder = &mut encoder;
        let gauges: [(&str, &str, Option<i64>); 3] = [
            ("process_resident_memory_bytes", "Resident memory", self.status_kb("VmRSS:").map(|kb| kb * 1024)),
            ("process_threads", "Threads", self.status_kb("Threads:")),
            ("process_open_fds", "Open file descriptors", {
                let open = self.list("proc/self/fd", "").len() as i64;
                (open > 0).then_some(open)
            }),
        ];
        for (name, help, value) in gauges {
            if let Some(value) = value {
                single(encoder, name, help, &ConstGauge::new(value))?;
            }
        }
        let zones: Vec<(String, String, f64)> = self
            .list("sys/class/thermal", "thermal_zone")
            .into_iter()
            .filter_map(|zone| {
                // A zone that is switched off can't be read.
                let millis = self.number(&format!("sys/class/thermal/{zone}/temp"))?;
                let kind = self.read(&format!("sys/class/thermal/{zone}/type")).unwrap_or_default();
                Some((zone, kind, millis as f64 / 1000.0))
            })
            .collect();
        if !zones.is_empty() {
            family(encoder, "actiond_temperature_celsius", "Temperature of the board", MetricType::Gauge, |e| {
                zones.iter().try_for_each(|(zone, kind, celsius)| {
                    put(e, &[("zone", zone), ("type", kind)], &ConstGauge::new(*celsius))
                })
            })?;
        }
        let cooling: Vec<(String, String, i64)> = self
            .list("sys/class/thermal", "cooling_device")
            .into_iter()
            .filter_map(|device| {
                let state = self.number(&format!("sys/class/thermal/{device}/cur_state"))?;
                let kind = self.read(&format!("sys/class/thermal/{device}/type")).unwrap_or_default();
                Some((device, kind, state))
            })
            .collect();
        if !cooling.is_empty() {
            let help = "How far each means of cooling is turned on, 0 being off: fans, and clocks that are lowered";
            family(encoder, "actiond_cooling_state", help, MetricType::Gauge, |e| {
                cooling.iter().try_for_each(|(device, kind, state)| {
                    put(e, &[("device", device), ("type", kind)], &ConstGauge::new(*state))
                })
            })?;
        }
        let throttled = self.throttled();
        if !throttled.is_empty() {
            let help = "Times that the hardware slowed itself down";
            family(encoder, "actiond_throttled", help, MetricType::Counter, |e| {
                throttled.iter().try_for_each(|(source, n)| put(e, &[("source", source)], &ConstCounter::new(*n)))
            })?;
        }
        Ok(())
    }
}

impl System {
    /// A number of `/proc/self/status`.
    fn status_kb(&self, key: &str) -> Option<i64> {
        let text = self.read("proc/self/status")?;
        let line = text.lines().find_map(|l| l.strip_prefix(key))?;
        line.split_ascii_whitespace().next()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::event;

    /// Every line is one that the format allows; gives the samples.
    pub(crate) fn samples(text: &str) -> Vec<(String, f64)> {
        assert!(text.ends_with("# EOF\n"), "{text}");
        let lines = text.lines().filter(|l| !l.starts_with('#'));
        lines
            .map(|line| {
                let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
                (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("{line}")))
            })
            .collect()
    }

    fn system(folder: &Path) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(System { root: folder.into() }));
        let mut out = String::new();
        text::encode(&mut out, &registry).unwrap();
        out
    }

    #[test]
    fn what_becomes_of_events_is_told_by_sink() {
        let metrics = Metrics::new();
        let stats =
            publish::Stats { name: "mqtt".into(), connected: true, delivered: 3, lost: 2, refused: 1, failures: 4 };
        metrics.watch_sinks(vec![Arc::new(Mutex::new(stats))]);
        let text = metrics.text();
        for line in ["up{%} 1", "delivered_total{%} 3", "lost_total{%} 2", "refused_total{%} 1", "failures_total{%} 4"]
        {
            let line = format!("actiond_sink_{}", line.replace('%', "sink=\"mqtt\""));
            assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
        }
    }

    #[test]
    fn a_board_s_temperatures_and_throttling_are_told_where_there_are_any() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(samples(&system(folder.path())), []);
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("sys/class/thermal/thermal_zone0/temp", "48500\n");
        write("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n");
        write("sys/class/thermal/thermal_zone1/type", "gpu-thermal\n");
        write("sys/class/thermal/cooling_device0/cur_state", "2\n");
        write("sys/class/thermal/cooling_device0/type", "pwm-fan\n");
        write("sys/class/hwmon/hwmon3/oc1_event_cnt", "7\n");
        write("sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count", "4\n");
        write("sys/devices/system/cpu/cpu1/thermal_throttle/package_throttle_count", "4\n");
        write("proc/self/status", "Name:\tactiond\nVmRSS:\t   1000 kB\nThreads:\t7\n");
        let expected = [
            ("process_resident_memory_bytes", 1_024_000.0),
            ("process_threads", 7.0),
            (r#"actiond_temperature_celsius{zone="thermal_zone0",type="cpu-thermal"}"#, 48.5),
            (r#"actiond_cooling_state{device="cooling_device0",type="pwm-fan"}"#, 2.0),
            (r#"actiond_throttled_total{source="oc1"}"#, 7.0),
            (r#"actiond_throttled_total{source="cpu"}"#, 4.0),
        ];
        assert_eq!(samples(&system(folder.path())), expected.map(|(name, value)| (name.to_owned(), value)));
    }

    #[test]
    fn this_process_is_told_of() {
        let samples = samples(&Metrics::new().text());
        let of = |name: &str| samples.iter().find(|(n, _)| n == name).map(|(_, value)| *value).unwrap();
        assert!(of("process_resident_memory_bytes") > 1e6);
        assert!(of("process_open_fds") >= 3.0 && of("process_threads") >= 1.0);
    }

    #[test]
    fn events_are_counted_by_camera_and_label() {
        let metrics = Metrics::new();
        let mut event = event::sample(7);
        event.label = "sitting \"down\"\n".into();
        metrics.event(&event);
        metrics.event(&event);
        metrics.event(&event);
        let text = metrics.text();
        assert!(
            text.contains(r#"actiond_events_total{camera="door",label="sitting \"down\"\n",phase="start"} 3"#),
            "{text}"
        );
    }

    #[test]
    fn something_new_is_one_line() {
        let metrics = Metrics::new();
        let late: Counter = metrics.add("actiond_late", "Events that came late", Counter::default());
        late.inc_by(3);
        assert!(metrics.text().contains("# TYPE actiond_late counter\nactiond_late_total 3\n"));
        assert_eq!(metrics.health().status, "starting");
    }
}
