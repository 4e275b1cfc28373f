//! Everything that GStreamer plays: files of any container and codec, RTSP and HTTP streams, CSI cameras, and any
//! pipeline that somebody types.
//!
//! One pipeline a stream, always with the same end: `videoconvert ! videoflip ! appsink`. The convert step passes I420
//! through untouched (which is what most decoders give), the flip step only works where a phone has written that the
//! picture is to be turned. Hardware decoders are taken by GStreamer's own ranks; where one leaves its pictures in
//! memory that the CPU can't read (`nvv4l2decoder` on a Jetson), the element that fetches them is put in between. That
//! part, and CSI cameras, have not run on a board yet.
//!
//! Pictures pass from GStreamer's thread to ours through a mailbox for one. It is here and not in the appsink, since
//! the appsink drops without counting.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::Path,
    sync::{
        Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use ::gstreamer as gst;
use ::gstreamer_app as gst_app;
use ::gstreamer_video as gst_video;
use gio::prelude::*;
use gst::prelude::*;
use gst_video::prelude::*;

use super::{Options, Pace, RtspTransport, STOP_LOOK, Source, Uri, redact, unreadable};
use crate::{
    error::{Error, Kind, Result},
    frame::{Matrix, Picture, Pixels, Plane},
    time::Shutdown,
};

/// How much jitter of the network is evened out, and how far a stream may fall behind before packets are left out.
const RTSP_LATENCY_MS: u32 = 200;
/// A recording that can't be decoded for this long is stuck (a network disk that went away).
const RECORDING_STALL: Duration = Duration::from_secs(60);
/// After an error, what is still on its way through the decoder gets this long to arrive.
const DRAIN: Duration = Duration::from_secs(2);
/// How often, and how many times in a row, a pipeline must be seen without a thread that works to count as dead.
const IDLE_LOOK: Duration = Duration::from_millis(250);
const IDLE_LOOKS: u32 = 4;
/// A camera whose pictures have come steadily is gone after this much silence, or after so many of its usual intervals: it
/// may have lost its power without a word, and is to be back soon after its power is. `Options::stall` bounds it. An
/// answer to a request is waited for no longer either, for the same reason; a first picture is, as keyframes may be rare.
const SILENCE: Duration = Duration::from_secs(4);
const INTERVALS: u32 = 10;
/// How long closing a pipeline may take before it is left to itself.
const CLOSING: Duration = Duration::from_secs(5);

/// Starts GStreamer, once for the process.
pub fn init() -> Result<()> {
    static STARTED: LazyLock<std::result::Result<(), String>> = LazyLock::new(|| {
        gst::init().map_err(|e| e.to_string())?;
        prepare();
        Ok(())
    });
    STARTED.clone().map_err(|e| Error::unavailable("GStreamer does not start").caused_by(e))
}

/// Makes one of each of the things that network sources begin with, while one thread alone does it. Two that make their first
/// ones at the same time (an RTSP camera that connects, an HTTP camera whose plugin is being loaded) can each hold what the
/// other waits for in GLib's registration of types, and then no camera ever connects: seen with GLib 2.74.
fn prepare() {
    let _ = gst::Plugin::load_by_name("soup");
    let _ = gst::Plugin::load_by_name("rtsp");
    let _ = gio::TlsBackend::default();
    // To ourselves; what counts is what it takes to connect.
    if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        && let Ok(address) = listener.local_addr()
    {
        let client = gio::SocketClient::new();
        client.set_timeout(1);
        let _ = client.connect_to_host("127.0.0.1", address.port(), gio::Cancellable::NONE);
    }
}

/// The usual interval after one more. A single hiccup has little weight.
fn usual(usual: Duration, interval: Duration) -> Duration {
    if usual.is_zero() { interval } else { (usual * 15 + interval) / 16 }
}

/// How long the next picture of a camera is waited for that gives one every `usual`.
fn patience(stall: Duration, usual: Duration) -> Duration {
    stall.min(SILENCE.max(usual * INTERVALS))
}

/// A stream that GStreamer plays.
pub struct Stream {
    pipeline: gst::Pipeline,
    mailbox: Arc<Mailbox>,
    origin: Origin,
    /// As messages call it; no password in it.
    name: String,
    pace: Pace,
    stall: Duration,
    stop: Shutdown,
    /// When the last sample came, and how long a camera's pictures are apart as a rule.
    arrived: Option<Instant>,
    interval: Duration,
    opened: Instant,
    /// The picture that was given out last, mapped for as long as it may be read.
    frame: Option<gst_video::VideoFrame<gst_video::video_frame::Readable>>,
    /// The layout that goes with the caps; it changes when the stream changes its size.
    layout: Option<Layout>,
    /// The running time of a recording's first picture.
    first: Option<Duration>,
    /// The time of the last picture, and how many there were.
    last: Duration,
    given: u64,
    ended: Option<(Kind, String)>,
}

/// How the pictures of some caps lie in memory, and what their numbers mean.
struct Layout {
    caps: gst::Caps,
    info: gst_video::VideoInfo,
    matrix: Matrix,
    full_range: bool,
}

impl Layout {
    fn of(caps: gst::Caps) -> Result<Self, gst::glib::BoolError> {
        let info = gst_video::VideoInfo::from_caps(&caps)?;
        // The info forgets the range where the caps leave the matrix open, as JPEG-like H.264 does.
        let said = caps.structure(0).and_then(|s| s.get::<&str>("colorimetry").ok());
        let color = said.and_then(|said| said.parse().ok()).unwrap_or_else(|| info.colorimetry());
        let matrix = match color.matrix() {
            gst_video::VideoColorMatrix::Bt601 | gst_video::VideoColorMatrix::Fcc => Matrix::Bt601,
            // These three differ by less than what a codec loses.
            gst_video::VideoColorMatrix::Bt709
            | gst_video::VideoColorMatrix::Smpte240m
            | gst_video::VideoColorMatrix::Bt2020 => Matrix::Bt709,
            _ if info.height() > 576 => Matrix::Bt709,
            _ => Matrix::Bt601,
        };
        let full_range = color.range() == gst_video::VideoColorRange::Range0_255;
        Ok(Layout { caps, info, matrix, full_range })
    }
}

/// What a stream is, as far as its errors are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    File,
    Network,
    Camera,
    Pipeline,
}

/// Where GStreamer's threads leave what they have.
#[derive(Default)]
struct Mailbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// `Recorded` waits until this is taken, `Live` writes over it. With it goes when it came.
    sample: Option<(gst::Sample, Instant)>,
    /// How many were written over since the last was taken.
    dropped: u64,
    ended: bool,
    failure: Option<Failure>,
    /// Some decoder that is not installed, as GStreamer describes it, and the kind of data that it is for.
    missing: Option<(String, String)>,
    /// The server hung up without saying that the stream is over.
    hung_up: bool,
    /// A video stream was found.
    linked: bool,
    /// There is sound, and no video so far; that is the last word when all streams were found.
    no_video: bool,
    all_found: bool,
    closing: bool,
}

/// An error from GStreamer's bus.
struct Failure {
    error: gst::glib::Error,
    at: Instant,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in another thread can't have left this half-written: every change is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn put(&self, sample: gst::Sample, pace: Pace) -> Result<gst::FlowSuccess, gst::FlowError> {
        let mut state = self.lock();
        while pace == Pace::Recorded && state.sample.is_some() && !state.closing {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closing {
            return Err(gst::FlowError::Flushing);
        }
        if state.sample.replace((sample, Instant::now())).is_some() {
            state.dropped += 1;
        }
        self.changed.notify_all();
        Ok(gst::FlowSuccess::Ok)
    }

    /// Reads what is of interest from the bus.
    fn hear(&self, message: &gst::MessageRef) {
        match message.view() {
            gst::MessageView::Error(e) => {
                log::debug!(
                    "GStreamer: {} ({})",
                    redact(&e.error().to_string()),
                    redact(&e.debug().unwrap_or_default())
                );
                self.set(|state| {
                    // The first one is the cause, what follows are its consequences.
                    state.failure.get_or_insert(Failure { error: e.error(), at: Instant::now() });
                });
            }
            gst::MessageView::Warning(w) => {
                let text = redact(&format!("{} ({})", w.error(), w.debug().unwrap_or_default()));
                log::debug!("GStreamer: {text}");
                if text.contains("server closed the connection") {
                    self.set(|state| state.hung_up = true);
                }
            }
            gst::MessageView::Element(e) => {
                if let Some(missing) = e.structure().filter(|s| s.name() == "missing-plugin") {
                    let name = missing.get::<String>("name").unwrap_or_default();
                    let detail = missing
                        .get::<gst::Caps>("detail")
                        .map(|caps| caps.to_string())
                        .or_else(|_| missing.get::<String>("detail"))
                        .unwrap_or_default();
                    self.set(|state| {
                        // Sound that can't be decoded is none of our business.
                        if detail.starts_with("audio/") {
                            state.no_video = !state.linked;
                        } else {
                            state.missing = Some((name, detail));
                        }
                    });
                }
            }
            _ => {}
        }
    }
}

impl Stream {
    /// Builds and starts the pipeline for `uri`; see [`super::open`].
    pub fn open(uri: &Uri, options: &Options, stop: &Shutdown) -> Result<Self> {
        init()?;
        let name = uri.to_string();
        let mailbox = Arc::new(Mailbox::default());
        let (origin, pipeline) = match uri {
            Uri::File(path) => (Origin::File, file(path, &mailbox)?),
            Uri::Rtsp(location) => (Origin::Network, rtsp(location, options, &mailbox)?),
            Uri::Http(location) => (Origin::Network, http(location, &mailbox)?),
            Uri::Csi(sensor) => (Origin::Camera, csi(*sensor)?),
            Uri::Gst(description) => (Origin::Pipeline, described(description)?),
            Uri::Usb(_) | Uri::Replay(_) => return Err(Error::internal(format!("{name} is not for GStreamer"))),
        };
        let sink = pipeline
            .by_name(SINK)
            .and_downcast::<gst_app::AppSink>()
            .ok_or_else(|| Error::internal("the pipeline has lost its appsink"))?;

        let bus = pipeline.bus().ok_or_else(|| Error::internal("the pipeline has no bus"))?;
        let ear = Arc::downgrade(&mailbox);
        bus.set_sync_handler(move |_, message| {
            if let Some(mailbox) = ear.upgrade() {
                mailbox.hear(message);
            }
            gst::BusSyncReply::Drop
        });

        let mut stream = Stream {
            pipeline,
            mailbox,
            origin,
            name,
            pace: Pace::Recorded,
            stall: options.stall,
            stop: stop.clone(),
            arrived: None,
            interval: Duration::ZERO,
            opened: Instant::now(),
            frame: None,
            layout: None,
            first: None,
            last: Duration::ZERO,
            given: 0,
            ended: None,
        };
        // Only a live source has nothing to show while it is paused, which is how a typed pipeline tells what it is.
        let live = match stream.pipeline.set_state(gst::State::Paused) {
            Ok(gst::StateChangeSuccess::NoPreroll) => true,
            Ok(_) => origin == Origin::Network || origin == Origin::Camera,
            Err(_) => return Err(stream.failure()),
        };
        if live || options.realtime {
            stream.pace = Pace::Live;
        }
        // At its own pace as well: the sink waits for as long as a gap in its timestamps lasts.
        if !live {
            stream.stall = stream.stall.max(RECORDING_STALL);
        }
        // What is live comes at its own pace; everything else is held to its timestamps if it is to look live.
        sink.set_sync(stream.pace == Pace::Live && (!live || matches!(uri, Uri::Http(_))));
        listen(&sink, &stream.mailbox, stream.pace);
        if stream.pipeline.set_state(gst::State::Playing).is_err() {
            return Err(stream.failure());
        }
        Ok(stream)
    }

    /// Waits for the next sample, and says how many were dropped before it.
    fn receive(&self) -> Result<(gst::Sample, Instant, u64)> {
        let begin = Instant::now();
        let mut idle = 0;
        let mut state = self.mailbox.lock();
        loop {
            if let Some((sample, came)) = state.sample.take() {
                self.mailbox.changed.notify_all();
                return Ok((sample, came, std::mem::take(&mut state.dropped)));
            }
            let now = Instant::now();
            let mut until = begin + self.patience();
            if let Some(failure) = &state.failure {
                // A recording's damage is behind pictures that are still in the decoder.
                let drained = failure.at.max(begin) + DRAIN;
                let flowing = state.linked || self.given > 0;
                if self.pace == Pace::Live || !flowing || state.ended || now >= drained {
                    drop(state);
                    return Err(self.failure());
                }
                until = until.min(drained);
            } else if state.ended || (state.no_video && state.all_found) {
                drop(state);
                return Err(self.end());
            }
            if now >= until {
                return Err(self.stalled());
            }
            if self.stop.is_set() {
                return Err(Error::end_of_stream());
            }
            if self.origin == Origin::File && !state.linked {
                // Now and then decodebin loses the error of a demuxer that fails while it is being plugged in. Then
                // nothing is said, and nobody works any more.
                drop(state);
                idle = if self.works() { 0 } else { idle + 1 };
                if idle > IDLE_LOOKS {
                    return Err(self.end());
                }
                until = until.min(now + IDLE_LOOK);
                state = self.mailbox.lock();
                if state.sample.is_some() || state.failure.is_some() || state.ended {
                    continue;
                }
            } else {
                until = until.min(now + STOP_LOOK);
            }
            state = self.mailbox.changed.wait_timeout(state, until - now).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// How long a picture may be waited for.
    fn patience(&self) -> Duration {
        match self.origin {
            Origin::Network | Origin::Camera if self.given > 1 => patience(self.stall, self.interval),
            _ => self.stall,
        }
    }

    fn arrived(&mut self, came: Instant) {
        let Some(last) = self.arrived.replace(came) else { return };
        self.interval = usual(self.interval, came.saturating_duration_since(last));
    }

    /// Whether any of the pipeline's threads is running.
    fn works(&self) -> bool {
        self.pipeline
            .iterate_recurse()
            .into_iter()
            .flatten()
            .any(|element| element.pads().iter().any(|pad| pad.task_state() == gst::TaskState::Started))
    }

    /// A file that gave no picture: whether its end or the parser's complaint is heard of first, it is one sentence.
    fn unplayable(&self, why: &str) -> Error {
        Error::config(format!(
            "{} is not a video that can be played, or it is damaged ({why}): check it with ffprobe, or convert it",
            self.name
        ))
    }

    /// Why nothing follows, when nothing has failed.
    fn end(&self) -> Error {
        let state = self.mailbox.lock();
        if state.hung_up {
            return Error::unavailable(format!("{} closed the connection", self.name));
        }
        if self.given == 0 {
            if let Some(missing) = &state.missing {
                return self.missing(missing);
            }
            return match self.origin {
                Origin::File => self.unplayable("no picture in it can be decoded"),
                Origin::Network | Origin::Camera if state.no_video => {
                    Error::config(format!("{} has no video stream", self.name))
                }
                Origin::Network | Origin::Camera => {
                    Error::unavailable(format!("{} ended before its first picture", self.name))
                }
                Origin::Pipeline => Error::config(format!("{} gave no picture before it ended", self.name)),
            };
        }
        drop(state);
        let length = self.pipeline.query_duration::<gst::ClockTime>().map(Duration::from);
        if let Some(length) = length.filter(|l| self.origin == Origin::File && *l > self.last + Duration::from_secs(1))
        {
            log::warn!(
                "{} ended after {:.1} s, though its header says {:.1} s: it is probably cut short",
                self.name,
                self.last.as_secs_f64(),
                length.as_secs_f64()
            );
        }
        Error::end_of_stream()
    }

    fn stalled(&self) -> Error {
        let stall = self.patience().as_secs_f64();
        match self.given {
            0 => Error::unavailable(format!("{} gave no picture for {stall} s", self.name)),
            _ => Error::unavailable(format!(
                "{} gave no picture for {stall} s (the last at {:.1} s)",
                self.name,
                self.last.as_secs_f64()
            )),
        }
    }

    fn missing(&self, (name, detail): &(String, String)) -> Error {
        Error::config(format!(
            "{} needs a part of GStreamer that is not installed ({name}): apt install {}",
            self.name,
            package_for(detail)
        ))
    }

    /// What the error on the bus means for the one who has to decide.
    fn failure(&self) -> Error {
        let state = self.mailbox.lock();
        let name = &self.name;
        let Some(Failure { error, .. }) = &state.failure else {
            return match self.origin {
                Origin::Camera => Error::unavailable(format!("{name} does not start")),
                _ => Error::config(format!("{name} does not start")),
            };
        };
        let text = redact(error.message().trim_end_matches('.'));
        if let Some(missing) = state.missing.as_ref().filter(|_| self.given == 0) {
            return self.missing(missing);
        }
        if error.matches(gst::ResourceError::NotAuthorized) {
            return Error::config(format!("{name} refuses the user name or the password ({text})"));
        }
        // A camera that only listens: there is nothing that it could be asked for.
        if state.no_video && !state.linked {
            return Error::config(format!("{name} has sound, but no video stream"));
        }
        if self.origin == Origin::File && !state.linked && error.matches(gst::CoreError::MissingPlugin) {
            // Of a video whose decoder is missing, there would have been a word.
            return Error::config(format!("{name} has no video in it, only sound or the like"));
        }
        if error.matches(gst::CoreError::MissingPlugin) {
            return Error::config(format!("{name} needs a part of GStreamer that is not installed ({text})"));
        }
        match self.origin {
            Origin::File if self.given > 0 => Error::config(format!(
                "{name} is damaged after {:.1} s, {} pictures could be read ({text})",
                self.last.as_secs_f64(),
                self.given
            )),
            Origin::File => self.unplayable(&text),
            Origin::Network if error.matches(gst::ResourceError::NotFound) => {
                Error::unavailable(format!("{name} does not have this stream now ({text}): check the address"))
            }
            Origin::Network if self.given == 0 => Error::unavailable(format!("{name} can't be reached ({text})")),
            Origin::Network => {
                Error::unavailable(format!("{name} broke off after {:.1} s ({text})", self.last.as_secs_f64()))
            }
            Origin::Camera => Error::unavailable(format!("{name} gives no pictures ({text})")),
            // What a pipeline opens (a device, an address) may be there later; what it says stays wrong.
            Origin::Pipeline if self.given == 0 && error.kind::<gst::ResourceError>().is_none() => {
                Error::config(format!("{name} does not run ({text})"))
            }
            Origin::Pipeline if self.given == 0 => Error::unavailable(format!("{name} does not start ({text})")),
            Origin::Pipeline => {
                Error::unavailable(format!("{name} broke off after {:.1} s ({text})", self.last.as_secs_f64()))
            }
        }
    }

    /// The time of a sample. A buffer without a timestamp was made when it came, if it is a camera's (MJPEG over HTTP);
    /// in a recording (some raw streams) it comes one picture's duration after the one before, by its own word or by
    /// the rate of the caps.
    fn time_of(
        &mut self,
        sample: &gst::Sample,
        came: Instant,
        buffer: &gst::BufferRef,
        info: &gst_video::VideoInfo,
    ) -> Duration {
        let running = sample
            .segment()
            .and_then(|segment| segment.downcast_ref::<gst::ClockTime>())
            .and_then(|segment| segment.to_running_time(buffer.pts()?))
            .map(Duration::from);
        let since_first = match running {
            // A camera's clock is its own; it began when the stream did, perhaps before the first picture.
            Some(time) if self.pace == Pace::Live && self.origin != Origin::File => time,
            Some(time) => time.saturating_sub(*self.first.get_or_insert(time)),
            None if self.pace == Pace::Live && self.origin != Origin::File => came.duration_since(self.opened),
            None if self.given == 0 => Duration::ZERO,
            None => {
                let fps = info.fps();
                let nominal =
                    (fps.numer() > 0).then(|| Duration::from_secs_f64(f64::from(fps.denom()) / f64::from(fps.numer())));
                self.last + buffer.duration().map(Duration::from).or(nominal).unwrap_or(Duration::from_millis(40))
            }
        };
        since_first.max(self.last)
    }

    fn broken(&self, what: &str) -> Error {
        // A camera may have recovered when it is opened again, a file stays what it is.
        let kind = if self.pace == Pace::Live { Kind::Unavailable } else { Kind::Internal };
        Error::new(kind, format!("{}: GStreamer gave a picture {what}", self.name))
    }

    fn picture(&mut self, sample: gst::Sample, came: Instant, dropped: u64) -> Result<Picture<'_>> {
        let caps = sample.caps_owned().ok_or_else(|| self.broken("without caps"))?;
        let buffer = sample.buffer_owned().ok_or_else(|| self.broken("without a buffer"))?;
        let layout = match self.layout.take().filter(|known| known.caps == caps) {
            Some(known) => known,
            None => {
                log::debug!("{}: {caps}", self.name);
                Layout::of(caps).map_err(|e| self.broken("of no known layout").caused_by(e))?
            }
        };

        let time = self.time_of(&sample, came, &buffer, &layout.info);
        let frame = gst_video::VideoFrame::from_buffer_readable(buffer, &layout.info)
            .map_err(|_| self.broken("that is smaller than its caps say"))?;
        self.last = time;
        self.given += 1;
        let layout = &*self.layout.insert(layout);
        let frame = &*self.frame.insert(frame);
        let pixels = pixels(frame, layout).map_err(|e| Error::internal("a picture can't be read").caused_by(e))?;
        Ok(Picture { width: frame.width() as usize, height: frame.height() as usize, time, dropped, pixels })
    }
}

impl Source for Stream {
    fn next(&mut self) -> Result<Picture<'_>> {
        // Gives the buffer back to the decoder's pool before waiting for another one.
        self.frame = None;
        if let Some((kind, message)) = &self.ended {
            return Err(Error::new(*kind, message.clone()));
        }
        match self.receive() {
            Ok((sample, came, dropped)) => {
                self.arrived(came);
                self.picture(sample, came, dropped)
            }
            Err(error) => {
                self.ended = Some((error.kind(), error.to_string()));
                Err(error)
            }
        }
    }

    fn pace(&self) -> Pace {
        self.pace
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.frame = None;
        self.mailbox.set(|state| {
            state.closing = true;
            state.sample = None;
        });
        // A driver or a network that hangs must not take the camera thread with it.
        let pipeline = self.pipeline.clone();
        let (done, closed) = mpsc::channel();
        let closer = std::thread::Builder::new().name("gst-close".into()).spawn(move || {
            let _ = pipeline.set_state(gst::State::Null);
            let _ = done.send(());
        });
        match closer {
            Ok(_) if closed.recv_timeout(CLOSING).is_err() => {
                log::warn!("{} does not close; it is left to itself", self.name);
            }
            Ok(_) => {}
            Err(_) => {
                let _ = self.pipeline.set_state(gst::State::Null);
            }
        }
    }
}

/// The planes of a mapped frame.
fn pixels<'a, T>(frame: &'a gst_video::VideoFrame<T>, layout: &Layout) -> Result<Pixels<'a>, gst::glib::BoolError> {
    let plane = |number: u32| {
        let stride = frame.plane_stride()[number as usize] as usize;
        frame.plane_data(number).map(|data| Plane { data, stride })
    };
    if frame.format() == gst_video::VideoFormat::Rgb {
        return Ok(Pixels::Rgb(plane(0)?));
    }
    let Layout { matrix, full_range, .. } = *layout;
    Ok(Pixels::I420 { y: plane(0)?, u: plane(1)?, v: plane(2)?, matrix, full_range })
}

const SINK: &str = "actiond-sink";
const CONVERT: &str = "actiond-convert";

/// The end of every pipeline, in the words of a pipeline. RGB is taken as it is, too, so that pictures that were
/// never YCbCr (GIF, PNG) are not made into it.
fn tail() -> String {
    format!(
        "videoconvert name={CONVERT} ! videoflip video-direction=auto ! \
         appsink name={SINK} max-buffers=1 enable-last-sample=false qos=false \
         caps=\"video/x-raw, format=(string){{I420, RGB}}\""
    )
}

fn launch(description: &str) -> Result<gst::Pipeline> {
    let element = gst::parse::launch(description).map_err(|e| {
        if e.matches(gst::ParseError::NoSuchElement) {
            let element = e.message().split('"').nth(1).unwrap_or_default().to_owned();
            Error::config(format!(
                "GStreamer has no element {element} here: apt install {}",
                package_of(&element).unwrap_or("the package that brings it (apt-file search libgst)")
            ))
        } else {
            Error::config(format!("GStreamer does not understand the pipeline: {}", redact(e.message())))
        }
    })?;
    match element.downcast::<gst::Pipeline>() {
        Ok(pipeline) => Ok(pipeline),
        Err(_) => Err(Error::config("the description is a single element and no pipeline")),
    }
}

/// Hands every sample of the appsink to the mailbox.
fn listen(sink: &gst_app::AppSink, mailbox: &Arc<Mailbox>, pace: Pace) {
    let (for_samples, for_end) = (mailbox.clone(), mailbox.clone());
    let callbacks = gst_app::AppSinkCallbacks::builder()
        .new_sample(move |sink| for_samples.put(sink.pull_sample().map_err(|_| gst::FlowError::Flushing)?, pace))
        .eos(move |_| for_end.set(|state| state.ended = true))
        .build();
    sink.set_callbacks(callbacks);
}

/// Makes `decodebin` decode video only, and links the first video that it finds to the tail.
fn decode_video(pipeline: &gst::Pipeline, decodebin: &gst::Element, mailbox: &Arc<Mailbox>) -> Result<()> {
    // Without this, sound and subtitles would be decoded and thrown away.
    decodebin.set_property("caps", gst::Caps::builder("video/x-raw").any_features().build());
    decodebin.set_property("expose-all-streams", false);

    // An MJPEG camera over HTTP: unless told that more streams won't come, decodebin waits for them to the end.
    pipeline.connect_deep_element_added(|_, _, element| {
        if element.factory().is_some_and(|factory| factory.name() == "multipartdemux") {
            element.set_property("single-stream", true);
        }
    });

    let weak = pipeline.downgrade();
    let found = Arc::downgrade(mailbox);
    decodebin.connect_pad_added(move |_, pad| {
        let (Some(pipeline), Some(mailbox)) = (weak.upgrade(), found.upgrade()) else { return };
        let caps = pad.current_caps().unwrap_or_else(|| pad.query_caps(None));
        let is_video = caps.structure(0).is_some_and(|s| s.name() == "video/x-raw");
        // A second video stream (a cover, another angle) stays unlinked, and so is not decoded for long.
        if !is_video || mailbox.lock().linked {
            return;
        }
        match link(&pipeline, pad, &caps) {
            Ok(()) => mailbox.set(|state| state.linked = true),
            Err(e) => {
                gst::element_error!(pipeline, gst::StreamError::Format, ("{e}"));
            }
        }
    });
    let seen = Arc::downgrade(mailbox);
    decodebin.connect_no_more_pads(move |_| {
        if let Some(mailbox) = seen.upgrade() {
            mailbox.set(|state| {
                state.no_video = !state.linked;
                state.all_found = true;
            });
        }
    });
    Ok(())
}

/// Links a decoder's pad to the tail, over the element that fetches its pictures into the CPU's memory if need be.
fn link(pipeline: &gst::Pipeline, pad: &gst::Pad, caps: &gst::Caps) -> Result<()> {
    let failed = |e: gst::glib::BoolError| Error::internal("the decoder can't be connected").caused_by(e.to_string());
    let convert = pipeline.by_name(CONVERT).ok_or_else(|| Error::internal("the pipeline has lost its end"))?;
    let memory = caps.features(0).map(|features| features.to_string()).unwrap_or_default();
    let fetch = match memory.as_str() {
        m if m.contains("memory:NVMM") => Some("nvvidconv"),
        m if m.contains("memory:VAMemory") => Some("vapostproc"),
        m if m.contains("memory:VASurface") => Some("vaapipostproc"),
        m if m.contains("memory:GLMemory") => Some("gldownload"),
        _ => None,
    };
    let entry = match fetch {
        None => convert,
        Some(name) => {
            let fetch = gst::ElementFactory::make(name).build().map_err(|_| {
                Error::unavailable(format!(
                    "the decoder leaves its pictures in {memory}, and {name}, which fetches them, is not installed"
                ))
            })?;
            pipeline.add(&fetch).map_err(failed)?;
            fetch.sync_state_with_parent().map_err(failed)?;
            // Without a filter, both ends could agree to leave the pictures where they are.
            let plain = gst::Caps::new_empty_simple("video/x-raw");
            fetch.link_filtered(&convert, &plain).map_err(failed)?;
            fetch
        }
    };
    let sink = entry.static_pad("sink").ok_or_else(|| Error::internal("an element without a sink pad"))?;
    pad.link(&sink).map_err(|e| Error::internal("the decoder can't be connected").caused_by(e.to_string()))?;
    Ok(())
}

fn element(pipeline: &gst::Pipeline, name: &str) -> Result<gst::Element> {
    pipeline.by_name(name).ok_or_else(|| Error::internal(format!("the pipeline has lost {name}")))
}

/// `decodebin` and not `decodebin3`: the latter only became reliable after the GStreamer 1.20 of JetPack.
fn file(path: &Path, mailbox: &Arc<Mailbox>) -> Result<gst::Pipeline> {
    if let Some(error) = unreadable(path) {
        return Err(error);
    }
    let location = path
        .to_str()
        .ok_or_else(|| Error::config(format!("{} has a name that is not UTF-8: rename it", path.display())))?;
    let pipeline = launch(&format!("filesrc name=src ! decodebin name=decode {}", tail()))?;
    element(&pipeline, "src")?.set_property("location", location);
    decode_video(&pipeline, &element(&pipeline, "decode")?, mailbox)?;
    Ok(pipeline)
}

fn http(location: &str, mailbox: &Arc<Mailbox>) -> Result<gst::Pipeline> {
    let pipeline = launch(&format!("uridecodebin name=decode {}", tail()))?;
    let decode = element(&pipeline, "decode")?;
    decode.set_property("uri", location);
    // An MJPEG camera's pictures would else be kept until there is enough to play a film without breaks.
    decode.connect("source-setup", false, |values| {
        if let Some(source) = values.get(1).and_then(|v| v.get::<gst::Element>().ok())
            && source.has_property_with_type("is-live", bool::static_type())
        {
            source.set_property("is-live", true);
        }
        None
    });
    decode_video(&pipeline, &decode, mailbox)?;
    Ok(pipeline)
}

fn rtsp(location: &str, options: &Options, mailbox: &Arc<Mailbox>) -> Result<gst::Pipeline> {
    // The queue holds what arrives while the decoder does not get a processor, still encoded and so small. When even
    // that is full, the jitter buffer in front of it leaves packets out, and memory stays bounded.
    let pipeline = launch(&format!(
        "rtspsrc name=src queue name=queue max-size-buffers=0 max-size-bytes=16777216 max-size-time=4000000000 ! \
         decodebin name=decode {}",
        tail()
    ))?;
    let src = element(&pipeline, "src")?;
    src.set_property("location", location);
    // A key picture of a big camera is hundreds of packets at once; the kernel cuts this down to what it allows.
    src.set_property("udp-buffer-size", 4 << 20);
    src.set_property("latency", RTSP_LATENCY_MS);
    src.set_property("drop-on-latency", true);
    let answer = options.stall.min(SILENCE);
    src.set_property("tcp-timeout", u64::try_from(answer.as_micros()).unwrap_or(u64::MAX));
    src.set_property_from_str(
        "protocols",
        match options.rtsp_transport {
            RtspTransport::Tcp => "tcp",
            RtspTransport::Udp => "udp+udp-mcast",
        },
    );
    // Only the video is asked for: sound would cost the network, too.
    let asked = Arc::downgrade(mailbox);
    let video_seen = AtomicBool::new(false);
    src.connect("select-stream", false, move |values| {
        let caps = values.get(2).and_then(|v| v.get::<gst::Caps>().ok());
        let wanted = caps.is_some_and(|caps| is_video(&caps));
        let seen = video_seen.fetch_or(wanted, Ordering::Relaxed) || wanted;
        if let Some(mailbox) = asked.upgrade() {
            mailbox.set(|state| state.no_video = !seen);
        }
        Some(wanted.to_value())
    });
    let sink =
        element(&pipeline, "queue")?.static_pad("sink").ok_or_else(|| Error::internal("a queue without a sink pad"))?;
    src.connect_pad_added(move |_, pad| {
        let caps = pad.current_caps().unwrap_or_else(|| pad.query_caps(None));
        if is_video(&caps)
            && !sink.is_linked()
            && let Err(e) = pad.link(&sink)
        {
            log::warn!("the stream of an RTSP camera can't be connected: {e}");
        }
    });
    decode_video(&pipeline, &element(&pipeline, "decode")?, mailbox)?;
    Ok(pipeline)
}

/// Whether RTP caps are those of a video; a camera that does not say is believed to be one.
fn is_video(caps: &gst::Caps) -> bool {
    caps.structure(0).and_then(|s| s.get::<String>("media").ok()).is_none_or(|media| media == "video")
}

/// A camera on the board's own connector, through NVIDIA's driver stack.
fn csi(sensor: u32) -> Result<gst::Pipeline> {
    if gst::ElementFactory::find("nvarguscamerasrc").is_none() {
        return Err(Error::config(format!(
            "csi:{sensor} needs the GStreamer element nvarguscamerasrc, which only Jetson boards have \
             (package nvidia-l4t-gstreamer); elsewhere use gst: with the board's own camera element"
        )));
    }
    launch(&format!(
        "nvarguscamerasrc sensor-id={sensor} ! \
         video/x-raw(memory:NVMM), width=(int)1280, height=(int)720, framerate=(fraction)30/1 ! \
         nvvidconv ! video/x-raw, format=(string)I420 ! {}",
        tail()
    ))
}

fn described(description: &str) -> Result<gst::Pipeline> {
    launch(&format!("{} ! {}", description.trim_end_matches(['!', ' ']), tail()))
        .map_err(|e| e.context(format!("gst:{}", redact(description))))
}

/// The Debian package that decodes or demuxes a kind of data.
fn package_for(caps: &str) -> &'static str {
    match caps.split([',', ' ', '(']).next().unwrap_or_default() {
        "video/x-vp8"
        | "video/x-vp9"
        | "video/x-matroska"
        | "video/webm"
        | "video/quicktime"
        | "video/x-msvideo"
        | "video/x-flv"
        | "image/jpeg"
        | "image/png"
        | "application/x-rtp"
        | "rtsp"
        | "http"
        | "https"
        | "multipart/x-mixed-replace" => "gstreamer1.0-plugins-good",
        "video/mpegts" | "video/x-av1" | "application/x-hls" | "image/webp" | "application/mxf" => {
            "gstreamer1.0-plugins-bad"
        }
        "video/x-theora" | "application/ogg" => "gstreamer1.0-plugins-base",
        _ => "gstreamer1.0-libav gstreamer1.0-plugins-bad",
    }
}

/// The Debian package of an element that we use ourselves, or that people use in pipelines.
pub fn package_of(element: &str) -> Option<&'static str> {
    Some(match element {
        "videoconvert" | "decodebin" | "uridecodebin" | "appsink" | "videotestsrc" | "videorate" | "videoscale"
        | "oggdemux" | "theoradec" => "gstreamer1.0-plugins-base",
        "videoflip" | "rtspsrc" | "qtdemux" | "matroskademux" | "avidemux" | "jpegdec" | "vp8dec" | "vp9dec"
        | "v4l2src" | "multipartdemux" | "souphttpsrc" | "rtph264depay" | "rtpjpegdepay" | "udpsrc" | "flvdemux" => {
            "gstreamer1.0-plugins-good"
        }
        "h264parse" | "h265parse" | "tsdemux" | "av1dec" | "openh264dec" | "hlsdemux" | "y4mdec" | "srtsrc"
        | "rtmpsrc" => "gstreamer1.0-plugins-bad",
        "libcamerasrc" => "gstreamer1.0-libcamera",
        "nvarguscamerasrc" | "nvv4l2decoder" | "nvvidconv" => "nvidia-l4t-gstreamer",
        name if name.starts_with("avdec_") => "gstreamer1.0-libav",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_camera_is_waited_for_a_few_seconds_and_a_slow_one_longer() {
        let stall = Options::default().stall;
        let after = |seconds: &[f64]| {
            let interval = seconds.iter().fold(Duration::ZERO, |u, s| usual(u, Duration::from_secs_f64(*s)));
            patience(stall, interval).as_secs_f64()
        };
        assert_eq!(after(&[]), 4.0);
        assert_eq!(after(&[0.1; 9]), 4.0);
        // It stood still for nearly as long as it may.
        assert_eq!(after(&[&[0.1; 9][..], &[3.9], &[0.1; 2]].concat()), 4.0);
        assert_eq!(after(&[0.8; 9]), 8.0);
        assert_eq!(after(&[30.0; 2]), 10.0);
    }

    #[test]
    fn what_network_sources_begin_with_is_made_before_any_of_them() {
        init().unwrap();
        // Whichever part of GIO a connection takes; nothing else in these tests connects.
        for name in ["GSocketClient", "GSocketAddress", "GSocket", "GTcpConnection", "GTask", "GNetworkAddress"] {
            assert!(gst::glib::Type::from_name(name).is_some(), "{name}");
        }
        let loaded = |name: &str| gst::Registry::get().find_plugin(name).map(|p| p.is_loaded());
        assert_eq!((loaded("rtsp"), loaded("soup")), (Some(true), Some(true)));
    }

    fn sample(number: u64) -> gst::Sample {
        let mut buffer = gst::Buffer::with_size(4).unwrap();
        buffer.get_mut().unwrap().set_pts(gst::ClockTime::from_mseconds(number));
        gst::Sample::builder().buffer(&buffer).build()
    }

    fn number(sample: &gst::Sample) -> u64 {
        sample.buffer().and_then(|b| b.pts()).map_or(0, gst::ClockTime::mseconds)
    }

    #[test]
    fn a_live_mailbox_keeps_the_newest_and_counts_the_rest() {
        init().unwrap();
        let mailbox = Mailbox::default();
        for n in 1..=5 {
            mailbox.put(sample(n), Pace::Live).unwrap();
        }
        let mut state = mailbox.lock();
        assert_eq!((number(&state.sample.as_ref().unwrap().0), state.dropped), (5, 4));
        state.closing = true;
        drop(state);
        assert_eq!(mailbox.put(sample(6), Pace::Live), Err(gst::FlowError::Flushing));
    }

    #[test]
    fn a_recorded_mailbox_makes_the_decoder_wait_until_it_is_emptied_or_closed() {
        init().unwrap();
        let mailbox = Arc::new(Mailbox::default());
        let theirs = mailbox.clone();
        let decoder = std::thread::spawn(move || {
            let mut n = 0;
            while theirs.put(sample(n), Pace::Recorded).is_ok() {
                n += 1;
            }
            n
        });
        for expected in 0..20 {
            let mut state = mailbox.lock();
            while state.sample.is_none() {
                state = mailbox.changed.wait(state).unwrap();
            }
            assert_eq!((number(&state.sample.take().unwrap().0), state.dropped), (expected, 0));
            drop(state);
            mailbox.changed.notify_all();
        }
        mailbox.set(|state| state.closing = true);
        assert!((20..=21).contains(&decoder.join().unwrap()), "one may lie in the mailbox");
    }

    #[test]
    fn the_first_error_is_kept_and_a_missing_audio_decoder_is_none() {
        init().unwrap();
        let mailbox = Mailbox::default();
        for text in ["the cause", "its consequence"] {
            mailbox.hear(&gst::message::Error::new(gst::StreamError::Decode, text));
        }
        assert_eq!(mailbox.lock().failure.as_ref().unwrap().error.message(), "the cause");

        let missing = |kind: &str| {
            let detail = gst::Caps::new_empty_simple(kind);
            let structure =
                gst::Structure::builder("missing-plugin").field("name", "a decoder").field("detail", detail);
            gst::message::Element::new(structure.build())
        };
        mailbox.hear(&missing("audio/mpeg"));
        assert!(mailbox.lock().missing.is_none());
        mailbox.hear(&missing("video/x-vp9"));
        let state = mailbox.lock();
        let (name, detail) = state.missing.as_ref().unwrap();
        assert_eq!((name.as_str(), package_for(detail)), ("a decoder", "gstreamer1.0-plugins-good"));
    }

    #[test]
    fn colors_are_what_the_caps_say_or_what_the_size_suggests() {
        init().unwrap();
        for (height, said, matrix, full_range) in [
            (480, None, Matrix::Bt601, false),
            (720, None, Matrix::Bt709, false),
            (480, Some("bt709"), Matrix::Bt709, false),
            (1080, Some("bt601"), Matrix::Bt601, false),
            (2160, Some("bt2020"), Matrix::Bt709, false),
            (480, Some("1:4:0:0"), Matrix::Bt601, true),
            (480, Some("1:0:0:0"), Matrix::Bt601, true),
            (720, Some("1:0:0:0"), Matrix::Bt709, true),
        ] {
            let mut caps = gst::Caps::builder("video/x-raw")
                .field("format", "I420")
                .field("width", 64)
                .field("height", height)
                .field("framerate", gst::Fraction::new(25, 1));
            if let Some(said) = said {
                caps = caps.field("colorimetry", said);
            }
            let layout = Layout::of(caps.build()).unwrap();
            assert_eq!((layout.matrix, layout.full_range), (matrix, full_range), "{height} {said:?}");
        }
    }

    #[test]
    fn only_video_is_asked_of_an_rtsp_camera() {
        init().unwrap();
        let media = |media: &str| gst::Caps::builder("application/x-rtp").field("media", media).build();
        assert!(is_video(&media("video")) && !is_video(&media("audio")) && !is_video(&media("application")));
        assert!(is_video(&gst::Caps::new_empty_simple("application/x-rtp")));
    }

    #[test]
    fn every_element_of_our_own_pipelines_has_a_package() {
        for element in ["decodebin", "videoconvert", "videoflip", "appsink", "uridecodebin", "rtspsrc", "nvvidconv"] {
            assert!(package_of(element).is_some(), "{element}");
        }
    }
}
