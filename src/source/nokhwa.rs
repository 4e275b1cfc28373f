//! USB cameras, through Video4Linux.
//!
//! A thread captures and leaves each picture, as the camera packed it, in a mailbox for one: the newest wins, what it
//! overwrites is counted. Only a picture that is fetched is unpacked, so a slow consumer does not also pay for JPEGs
//! that nobody looks at.

use std::{
    io::Cursor,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    time::{Duration, Instant, SystemTime},
};

use ::nokhwa as nok;
use image::ImageDecoder;
use nok::utils::{
    ApiBackend, CameraFormat, CameraIndex, FrameFormat, RequestedFormat, RequestedFormatType, Resolution,
};

use super::{Options, Pace, STOP_LOOK, Source};
use crate::{
    error::{Error, Kind, Result},
    frame::{Matrix, Picture, Pixels, Plane},
    time::Shutdown,
};

/// What we can unpack, the cheapest first.
const FORMATS: [FrameFormat; 6] = [
    FrameFormat::NV12,
    FrameFormat::YUYV,
    FrameFormat::MJPEG,
    FrameFormat::GRAY,
    FrameFormat::RAWRGB,
    FrameFormat::RAWBGR,
];
/// So many damaged pictures in a row are a broken camera or cable; single ones are how USB is.
const DAMAGED_IN_A_ROW: u32 = 50;
/// How long the capture thread may take to let go of the camera.
const CLOSING: Duration = Duration::from_secs(2);

/// A USB camera that captures.
pub struct Camera {
    name: String,
    stall: Duration,
    stop: Shutdown,
    mailbox: Arc<Mailbox>,
    closed: mpsc::Receiver<()>,
    packed: Packed,
    unpacked: Unpacked,
    last: Duration,
    ended: Option<(Kind, String)>,
}

#[derive(Default)]
struct Mailbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    packed: Packed,
    full: bool,
    dropped: u64,
    failed: Option<String>,
    closing: bool,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves `packed` and takes the buffer that was there, so that two buffers do for ever.
    fn put(&self, packed: &mut Packed) {
        let mut state = self.lock();
        std::mem::swap(&mut state.packed, packed);
        if std::mem::replace(&mut state.full, true) {
            state.dropped += 1;
        }
        self.changed.notify_all();
    }

    /// Waits for a picture until `until`, or until it should stop; gives how many were overwritten before it.
    fn take(&self, packed: &mut Packed, until: Instant, stop: &Shutdown) -> std::result::Result<u64, Missed> {
        let mut state = self.lock();
        loop {
            if std::mem::take(&mut state.full) {
                std::mem::swap(&mut state.packed, packed);
                return Ok(std::mem::take(&mut state.dropped));
            }
            if let Some(why) = &state.failed {
                return Err(Missed::Failed(why.clone()));
            }
            let now = Instant::now();
            if now >= until {
                return Err(Missed::Silent);
            }
            if stop.is_set() {
                return Err(Missed::Stopped);
            }
            state =
                self.changed.wait_timeout(state, STOP_LOOK.min(until - now)).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Missed {
    Silent,
    Stopped,
    Failed(String),
}

/// A picture as the camera gave it.
struct Packed {
    bytes: Vec<u8>,
    format: FrameFormat,
    width: usize,
    height: usize,
    time: Duration,
}

impl Default for Packed {
    fn default() -> Self {
        Packed { bytes: Vec::new(), format: FrameFormat::GRAY, width: 0, height: 0, time: Duration::ZERO }
    }
}

impl Camera {
    /// Opens a camera by its device file (`/dev/video0`, or a link to one as in `/dev/v4l/by-id`).
    pub fn open(path: &Path, options: &Options, stop: &Shutdown) -> Result<Self> {
        let number = device_number(path)?;
        let name = format!("usb:{}", path.display());
        let mailbox = Arc::new(Mailbox::default());
        let (opened, opening) = mpsc::channel();
        let (closing, closed) = mpsc::channel();
        let (theirs, thread_name) = (mailbox.clone(), name.clone());
        // The camera lives on the thread that waits for it: a driver that hangs takes nobody else with it.
        std::thread::Builder::new()
            .name("usb-capture".into())
            .spawn(move || {
                match start(number) {
                    Ok(camera) => {
                        let _ = opened.send(Ok(()));
                        capture(camera, &theirs, &thread_name);
                    }
                    Err(why) => {
                        let _ = opened.send(Err(why));
                    }
                }
                let _ = closing.send(());
            })
            .map_err(|e| Error::internal("no thread for a camera").caused_by(e))?;
        let until = Instant::now() + options.stall;
        let started = loop {
            let now = Instant::now();
            match opening.recv_timeout(STOP_LOOK.min(until.saturating_duration_since(now))) {
                Err(mpsc::RecvTimeoutError::Timeout) if now < until && !stop.is_set() => {}
                started => break started,
            }
        };
        match started {
            Ok(Ok(())) => Ok(Camera {
                name,
                stall: options.stall,
                stop: stop.clone(),
                mailbox,
                closed,
                packed: Packed::default(),
                unpacked: Unpacked::default(),
                last: Duration::ZERO,
                ended: None,
            }),
            Ok(Err(why)) if why.contains("os error 16") => {
                Err(Error::unavailable(format!("{name} is in use by another program ({why})")))
            }
            Ok(Err(why)) => Err(Error::unavailable(format!("{name} can't be started ({why})"))),
            Err(_) => {
                mailbox.lock().closing = true;
                if stop.is_set() {
                    return Err(Error::end_of_stream());
                }
                Err(Error::unavailable(format!("{name} did not start within {} s", options.stall.as_secs_f64())))
            }
        }
    }
}

impl Source for Camera {
    fn next(&mut self) -> Result<Picture<'_>> {
        if let Some((kind, message)) = &self.ended {
            return Err(Error::new(*kind, message.clone()));
        }
        let until = Instant::now() + self.stall;
        let mut dropped = 0;
        for _ in 0..DAMAGED_IN_A_ROW {
            match self.mailbox.take(&mut self.packed, until, &self.stop) {
                Ok(overwritten) => dropped += overwritten,
                Err(missed) => {
                    let message = match missed {
                        Missed::Silent => {
                            format!("{} gave no picture for {} s", self.name, self.stall.as_secs_f64())
                        }
                        Missed::Failed(why) => format!("{} is gone: was it unplugged? ({why})", self.name),
                        Missed::Stopped => return Err(Error::end_of_stream()),
                    };
                    self.ended = Some((Kind::Unavailable, message.clone()));
                    return Err(Error::unavailable(message));
                }
            }
            match self.unpacked.fill(&self.packed) {
                Ok(()) => {
                    self.last = self.last.max(self.packed.time);
                    return Ok(self.unpacked.picture(self.last, dropped));
                }
                Err(why) => {
                    log::debug!("{}: a damaged picture: {why}", self.name);
                    dropped += 1;
                }
            }
        }
        Err(Error::unavailable(format!(
            "{} gave {DAMAGED_IN_A_ROW} damaged pictures in a row: check its cable, or plug it into another port",
            self.name
        )))
    }

    fn pace(&self) -> Pace {
        Pace::Live
    }
}

impl Drop for Camera {
    fn drop(&mut self) {
        self.mailbox.lock().closing = true;
        // The thread sees it at the next picture; one that waits for a silent camera is left to itself.
        if let Err(mpsc::RecvTimeoutError::Timeout) = self.closed.recv_timeout(CLOSING) {
            log::warn!("{} does not close; it is left to itself", self.name);
        }
    }
}

/// The N of /dev/videoN, behind links.
fn device_number(path: &Path) -> Result<u32> {
    let real: PathBuf = match std::fs::canonicalize(path) {
        Ok(real) => real,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let there = cameras();
            let there = match there.is_empty() {
                true => "no camera is plugged in".into(),
                false => format!(
                    "there is {}",
                    there
                        .iter()
                        .map(|(path, name)| format!("usb:{} ({name})", path.display()))
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
            };
            return Err(Error::unavailable(format!("usb:{} is not there; {there}", path.display())));
        }
        Err(e) => return Err(Error::unavailable(format!("usb:{} can't be opened", path.display())).caused_by(e)),
    };
    let number = real.to_str().and_then(|p| p.strip_prefix("/dev/video")).and_then(|n| n.parse().ok());
    let number = number.ok_or_else(|| {
        Error::config(format!("usb:{} is no camera: its device should be /dev/video0 or the like", path.display()))
    })?;
    match std::fs::File::options().read(true).write(true).open(&real) {
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => Err(Error::config(format!(
            "usb:{} may not be used by this user: sudo usermod -aG video $USER, and log in again",
            path.display()
        ))),
        _ => Ok(number),
    }
}

/// The capture devices of this machine, with the names that they give themselves.
pub fn cameras() -> Vec<(PathBuf, String)> {
    let mut cameras: Vec<_> = nok::query(ApiBackend::Video4Linux)
        .unwrap_or_default()
        .into_iter()
        .filter_map(|info| {
            let number = info.index().as_index().ok()?;
            Some((PathBuf::from(format!("/dev/video{number}")), info.human_name()))
        })
        .collect();
    cameras.sort();
    cameras
}

/// Opens the device in its best format and starts it.
fn start(number: u32) -> std::result::Result<nok::Camera, String> {
    let any = RequestedFormat::with_formats(RequestedFormatType::None, &FORMATS);
    let mut camera = nok::Camera::with_backend(CameraIndex::Index(number), any, ApiBackend::Video4Linux)
        .map_err(|e| e.to_string())?;
    let offered = camera.compatible_camera_formats().map_err(|e| e.to_string())?;
    if let Some(best) = best(&offered) {
        let exact = RequestedFormat::with_formats(RequestedFormatType::Exact(best), &FORMATS);
        camera.set_camera_requset(exact).map_err(|e| e.to_string())?;
    }
    camera.open_stream().map_err(|e| e.to_string())?;
    log::info!("/dev/video{number}: {}", camera.camera_format());
    Ok(camera)
}

/// The format that suits recognition: at least 25 fps, 640x480 to 1280x720, cheap to unpack. What a camera offers
/// outside of that is better than nothing.
fn best(offered: &[CameraFormat]) -> Option<CameraFormat> {
    offered.iter().filter(|f| FORMATS.contains(&f.format())).copied().max_by_key(|f| {
        let area = u64::from(f.width()) * u64::from(f.height());
        let enough = area >= 640 * 480;
        let bearable = area <= 1280 * 720;
        // Of those that are big enough the smallest, since the model's picture is smaller still; else the biggest.
        let size = if enough { -(area as i64) } else { area as i64 };
        let color = f.format() != FrameFormat::GRAY;
        let fast = f.frame_rate().min(25);
        let cheap = FORMATS.len() - FORMATS.iter().position(|g| *g == f.format()).unwrap_or(FORMATS.len());
        // 60 fps would be thrown away; the rate nearest above 25 wins.
        (color, fast, bearable, enough, size, -(f.frame_rate() as i64), cheap)
    })
}

/// The capture thread: until the camera fails, or nobody wants it any more.
fn capture(mut camera: nok::Camera, mailbox: &Mailbox, name: &str) {
    let start = Instant::now();
    let mut spare = Packed::default();
    loop {
        let captured = camera.frame();
        if mailbox.lock().closing {
            break;
        }
        match captured {
            Ok(buffer) => {
                // The driver stamps a picture when its exposure ends; it may wait a while for this thread to run.
                let age = buffer
                    .capture_timestamp()
                    .and_then(|at| SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?.checked_sub(at))
                    .filter(|age| *age < Duration::from_secs(1))
                    .unwrap_or_default();
                let Resolution { width_x, height_y } = buffer.resolution();
                spare.bytes.clear();
                spare.bytes.extend_from_slice(buffer.buffer());
                spare.format = buffer.source_frame_format();
                (spare.width, spare.height) = (width_x as usize, height_y as usize);
                spare.time = start.elapsed().saturating_sub(age);
                mailbox.put(&mut spare);
            }
            Err(e) => {
                log::debug!("{name}: {e}");
                mailbox.lock().failed = Some(e.to_string());
                mailbox.changed.notify_all();
                break;
            }
        }
    }
    let _ = camera.stop_stream();
}

/// A picture in one of our layouts, in buffers that are used again and again.
#[derive(Default)]
struct Unpacked {
    width: usize,
    height: usize,
    rgb: bool,
    /// The only plane where the picture is RGB, else luma.
    first: Vec<u8>,
    u: Vec<u8>,
    v: Vec<u8>,
    /// A JPEG with the tables that it lacked.
    jpeg: Vec<u8>,
}

impl Unpacked {
    fn fill(&mut self, packed: &Packed) -> std::result::Result<(), String> {
        let (width, height) = (packed.width, packed.height);
        let (half_width, half_height) = (width.div_ceil(2), height.div_ceil(2));
        // Drivers hand out buffers that may be longer than the picture, never shorter.
        let needed = match packed.format {
            FrameFormat::MJPEG => 4,
            FrameFormat::YUYV => 4 * half_width * height,
            FrameFormat::NV12 => width * height + 2 * half_width * half_height,
            FrameFormat::GRAY => width * height,
            FrameFormat::RAWRGB | FrameFormat::RAWBGR => 3 * width * height,
        };
        if packed.bytes.len() < needed || needed == 0 {
            return Err(format!("{} bytes where {needed} are needed", packed.bytes.len()));
        }
        let bytes = &packed.bytes;
        (self.width, self.height) = (width, height);
        self.rgb = matches!(packed.format, FrameFormat::MJPEG | FrameFormat::RAWRGB | FrameFormat::RAWBGR);
        if !self.rgb {
            self.first.resize(width * height, 0);
            self.u.resize(half_width * half_height, 0);
            self.v.resize(half_width * half_height, 0);
        }
        match packed.format {
            FrameFormat::MJPEG => self.fill_from_jpeg(bytes, [width, height])?,
            FrameFormat::YUYV => yuyv_to_i420(bytes, width, height, [&mut self.first, &mut self.u, &mut self.v]),
            FrameFormat::NV12 => {
                self.first.copy_from_slice(&bytes[..width * height]);
                let pairs = bytes[width * height..].chunks_exact(2);
                for ((u, v), pair) in self.u.iter_mut().zip(&mut self.v).zip(pairs) {
                    (*u, *v) = (pair[0], pair[1]);
                }
            }
            FrameFormat::GRAY => {
                self.first.copy_from_slice(&bytes[..width * height]);
                self.u.fill(128);
                self.v.fill(128);
            }
            FrameFormat::RAWRGB => {
                self.first.clear();
                self.first.extend_from_slice(&bytes[..needed]);
            }
            FrameFormat::RAWBGR => {
                self.first.clear();
                self.first.extend(bytes[..needed].chunks_exact(3).flat_map(|p| [p[2], p[1], p[0]]));
            }
        }
        Ok(())
    }

    /// `agreed`: the size that the camera was asked for.
    fn fill_from_jpeg(&mut self, bytes: &[u8], agreed: [usize; 2]) -> std::result::Result<(), String> {
        let bytes = if has_huffman_tables(bytes) {
            bytes
        } else {
            let (start, rest) = bytes.split_at(2);
            self.jpeg.clear();
            for part in [start, &STANDARD_HUFFMAN, rest] {
                self.jpeg.extend_from_slice(part);
            }
            &self.jpeg
        };
        let decoder = image::codecs::jpeg::JpegDecoder::new(Cursor::new(bytes)).map_err(|e| e.to_string())?;
        let (width, height) = decoder.dimensions();
        // The JPEG's own word counts: some cameras round the size that they were asked for. What is far more is damage,
        // and would be gigabytes.
        if width as usize > 2 * agreed[0] || height as usize > 2 * agreed[1] {
            return Err(format!("a JPEG of {width}x{height} where {}x{} was agreed on", agreed[0], agreed[1]));
        }
        (self.width, self.height) = (width as usize, height as usize);
        self.first.resize(3 * self.width * self.height, 0);
        match decoder.color_type() {
            image::ColorType::Rgb8 => decoder.read_image(&mut self.first).map_err(|e| e.to_string()),
            image::ColorType::L8 => {
                let size = self.width * self.height;
                decoder.read_image(&mut self.first[..size]).map_err(|e| e.to_string())?;
                // From the back, since what is widened must not overwrite what is still to be read.
                for i in (0..size).rev() {
                    let grey = self.first[i];
                    self.first[3 * i..3 * i + 3].fill(grey);
                }
                Ok(())
            }
            other => Err(format!("a JPEG of {other:?}")),
        }
    }

    fn picture(&self, time: Duration, dropped: u64) -> Picture<'_> {
        let (width, height) = (self.width, self.height);
        let pixels = if self.rgb {
            Pixels::Rgb(Plane { data: &self.first, stride: 3 * width })
        } else {
            let half = width.div_ceil(2);
            Pixels::I420 {
                y: Plane { data: &self.first, stride: width },
                u: Plane { data: &self.u, stride: half },
                v: Plane { data: &self.v, stride: half },
                // What the USB video class prescribes, whatever the size.
                matrix: Matrix::Bt601,
                full_range: false,
            }
        };
        Picture { width, height, time, dropped, pixels }
    }
}

/// The Huffman tables of ITU-T T.81, annex K.3, as one DHT segment.
#[rustfmt::skip]
const STANDARD_HUFFMAN: [u8; 420] = [
    0xff, 0xc4, 0x01, 0xa2, 0x00, 0x00, 0x01, 0x05, 0x01, 0x01, 0x01, 0x01, 0x01, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x10, 0x00, 0x02, 0x01, 0x03, 0x03, 0x02,
    0x04, 0x03, 0x05, 0x05, 0x04, 0x04, 0x00, 0x00, 0x01, 0x7d, 0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31,
    0x41, 0x06, 0x13, 0x51, 0x61, 0x07, 0x22, 0x71, 0x14, 0x32, 0x81, 0x91, 0xa1, 0x08, 0x23, 0x42, 0xb1, 0xc1, 0x15, 0x52,
    0xd1, 0xf0, 0x24, 0x33, 0x62, 0x72, 0x82, 0x09, 0x0a, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2a,
    0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x53, 0x54, 0x55, 0x56, 0x57,
    0x58, 0x59, 0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x83,
    0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0xa2, 0xa3, 0xa4, 0xa5,
    0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7,
    0xc8, 0xc9, 0xca, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda, 0xe1, 0xe2, 0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8,
    0xe9, 0xea, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa, 0x01, 0x00, 0x03, 0x01, 0x01, 0x01, 0x01, 0x01,
    0x01, 0x01, 0x01, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a,
    0x0b, 0x11, 0x00, 0x02, 0x01, 0x02, 0x04, 0x04, 0x03, 0x04, 0x07, 0x05, 0x04, 0x04, 0x00, 0x01, 0x02, 0x77, 0x00, 0x01,
    0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07, 0x61, 0x71, 0x13, 0x22, 0x32, 0x81, 0x08, 0x14,
    0x42, 0x91, 0xa1, 0xb1, 0xc1, 0x09, 0x23, 0x33, 0x52, 0xf0, 0x15, 0x62, 0x72, 0xd1, 0x0a, 0x16, 0x24, 0x34, 0xe1, 0x25,
    0xf1, 0x17, 0x18, 0x19, 0x1a, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3a, 0x43, 0x44, 0x45, 0x46,
    0x47, 0x48, 0x49, 0x4a, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a,
    0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x92, 0x93, 0x94,
    0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6,
    0xb7, 0xb8, 0xb9, 0xba, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8,
    0xd9, 0xda, 0xe2, 0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa,
];

/// Whether a JPEG has Huffman tables of its own. Motion JPEG, and with it many a webcam, leaves out the standard ones.
fn has_huffman_tables(jpeg: &[u8]) -> bool {
    let mut rest = jpeg.get(2..).unwrap_or_default();
    while let [0xff, marker, high, low, ..] = *rest {
        match marker {
            0xc4 => return true,
            0xda => return false,
            _ => rest = rest.get(2 + usize::from(u16::from_be_bytes([high, low]))..).unwrap_or_default(),
        }
    }
    // Something else: the decoder says what is wrong with it.
    true
}

/// Unpacks Y0 U Y1 V; chroma is the mean of two rows, rounded.
fn yuyv_to_i420(bytes: &[u8], width: usize, height: usize, [y, u, v]: [&mut [u8]; 3]) {
    let half = width.div_ceil(2);
    let stride = 4 * half;
    for row in 0..height {
        let line = &bytes[row * stride..][..stride];
        for (out, pair) in y[row * width..][..width].chunks_mut(2).zip(line.chunks_exact(4)) {
            out[0] = pair[0];
            if let Some(second) = out.get_mut(1) {
                *second = pair[2];
            }
        }
        if row % 2 == 0 {
            // The last row of an odd picture has no partner but itself.
            let below = &bytes[(row + 1).min(height - 1) * stride..][..stride];
            let at = row / 2 * half;
            let pairs = line.chunks_exact(4).zip(below.chunks_exact(4));
            for ((u, v), (a, b)) in u[at..at + half].iter_mut().zip(&mut v[at..at + half]).zip(pairs) {
                *u = (u16::from(a[1]) + u16::from(b[1])).div_ceil(2) as u8;
                *v = (u16::from(a[3]) + u16::from(b[3])).div_ceil(2) as u8;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(format: FrameFormat, width: usize, height: usize, bytes: Vec<u8>) -> Packed {
        Packed { bytes, format, width, height, time: Duration::ZERO }
    }

    fn format(width: u32, height: u32, format: FrameFormat, fps: u32) -> CameraFormat {
        CameraFormat::new(Resolution::new(width, height), format, fps)
    }

    #[test]
    fn yuyv_is_unpacked_also_where_sizes_are_odd() {
        // Two rows of two pixels, and the same with an odd third row and column.
        let mut unpacked = Unpacked::default();
        unpacked.fill(&packed(FrameFormat::YUYV, 2, 2, vec![1, 100, 2, 200, 3, 103, 4, 201])).unwrap();
        assert_eq!(
            (unpacked.first.as_slice(), unpacked.u.as_slice(), unpacked.v.as_slice()),
            (&[1, 2, 3, 4][..], &[102][..], &[201][..])
        );

        let row = |y: u8| [y, 10 * y, y + 1, 20 * y, y + 2, 11 * y, 0, 21 * y];
        let bytes = [row(1), row(5), row(9)].concat();
        unpacked.fill(&packed(FrameFormat::YUYV, 3, 3, bytes)).unwrap();
        assert_eq!(unpacked.first, [1, 2, 3, 5, 6, 7, 9, 10, 11]);
        assert_eq!(unpacked.u, [30, 33, 90, 99]);
        assert_eq!(unpacked.v, [60, 63, 180, 189]);
    }

    #[test]
    fn a_picture_of_one_pixel_is_unpacked_from_every_format() {
        for (format, bytes) in [
            (FrameFormat::YUYV, vec![7, 100, 0, 200]),
            (FrameFormat::NV12, vec![7, 100, 200]),
            (FrameFormat::GRAY, vec![7]),
            (FrameFormat::RAWRGB, vec![7, 8, 9]),
            (FrameFormat::RAWBGR, vec![9, 8, 7]),
        ] {
            let mut unpacked = Unpacked::default();
            unpacked.fill(&packed(format, 1, 1, bytes.clone())).unwrap();
            assert_eq!(unpacked.first[0], 7, "{format:?}");
            match unpacked.picture(Duration::ZERO, 0).pixels {
                Pixels::I420 { u, v, .. } if format != FrameFormat::GRAY => {
                    assert_eq!((u.data, v.data), (&[100][..], &[200][..]))
                }
                Pixels::I420 { u, v, .. } => assert_eq!((u.data, v.data), (&[128][..], &[128][..])),
                Pixels::Rgb(plane) => assert_eq!(plane.data, [7, 8, 9]),
            }
            let short = packed(format, 1, 1, bytes[..bytes.len() - 1].to_vec());
            assert!(unpacked.fill(&short).is_err(), "{format:?}");
        }
    }

    #[test]
    fn nv12_chroma_is_taken_apart() {
        let mut unpacked = Unpacked::default();
        let bytes = [vec![50; 16], vec![1, 2, 3, 4, 5, 6, 7, 8], vec![99; 5]].concat(); // a driver's padding behind it
        unpacked.fill(&packed(FrameFormat::NV12, 4, 4, bytes)).unwrap();
        assert_eq!((unpacked.u.as_slice(), unpacked.v.as_slice()), (&[1, 3, 5, 7][..], &[2, 4, 6, 8][..]));
    }

    fn jpeg(image: &image::DynamicImage) -> Vec<u8> {
        let mut bytes = Vec::new();
        image.write_with_encoder(image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 95)).unwrap();
        bytes
    }

    #[test]
    fn jpegs_are_unpacked_with_what_drivers_leave_behind_them_and_without_their_huffman_tables() {
        let red = image::DynamicImage::from(image::RgbImage::from_pixel(18, 10, image::Rgb([200, 30, 40])));
        let bytes = jpeg(&red);
        let near = |unpacked: &Unpacked| {
            assert_eq!((unpacked.width, unpacked.height, unpacked.first.len()), (18, 10, 540));
            assert!(
                unpacked.first.chunks(3).all(|p| p[0].abs_diff(200) < 8 && p[1].abs_diff(30) < 8),
                "{:?}",
                &unpacked.first[..6]
            );
        };
        let mut unpacked = Unpacked::default();
        // The size that the driver says is not believed, the JPEG's is.
        unpacked.fill(&packed(FrameFormat::MJPEG, 16, 8, [bytes.clone(), vec![0; 4000]].concat())).unwrap();
        near(&unpacked);

        // Motion JPEG leaves out the standard Huffman tables (segments ff c4).
        let mut without = bytes[..2].to_vec();
        let mut rest = &bytes[2..];
        while rest[1] != 0xda {
            let length = 2 + usize::from(u16::from_be_bytes([rest[2], rest[3]]));
            if rest[1] != 0xc4 {
                without.extend_from_slice(&rest[..length]);
            }
            rest = &rest[length..];
        }
        without.extend_from_slice(rest);
        assert!(without.len() < bytes.len());
        unpacked.fill(&packed(FrameFormat::MJPEG, 18, 10, without)).unwrap();
        near(&unpacked);

        let grey = image::DynamicImage::from(image::GrayImage::from_pixel(5, 3, image::Luma([90])));
        unpacked.fill(&packed(FrameFormat::MJPEG, 5, 3, jpeg(&grey))).unwrap();
        assert!(unpacked.first.iter().all(|v| v.abs_diff(90) < 4) && unpacked.first.len() == 45);

        assert!(unpacked.fill(&packed(FrameFormat::MJPEG, 18, 10, bytes[..40].to_vec())).is_err());
        // A damaged size: no picture, and no memory for one.
        let mut large = bytes.clone();
        let size = large.windows(2).position(|m| m == [0xff, 0xc0]).unwrap() + 5;
        large[size..size + 4].fill(0xff);
        let mut unpacked = Unpacked::default();
        let why = unpacked.fill(&packed(FrameFormat::MJPEG, 18, 10, large)).unwrap_err();
        assert!(why.contains("65535x65535") && unpacked.first.capacity() < 1 << 20, "{why}");
        assert!(unpacked.fill(&packed(FrameFormat::MJPEG, 18, 10, vec![0; 4000])).is_err());
    }

    #[test]
    fn the_best_format_is_fast_enough_then_small_enough_then_cheap() {
        use FrameFormat::{GRAY, MJPEG, YUYV};
        // A common webcam: raw is slow where it is big.
        let webcam = [
            format(320, 240, YUYV, 30),
            format(640, 480, YUYV, 30),
            format(640, 480, MJPEG, 30),
            format(1280, 720, YUYV, 10),
            format(1280, 720, MJPEG, 30),
            format(1920, 1080, MJPEG, 30),
        ];
        assert_eq!(best(&webcam), Some(webcam[1]));
        assert_eq!(best(&webcam[3..]), Some(webcam[4]));
        assert_eq!(best(&[webcam[0], webcam[3]]), Some(webcam[0]), "speed goes before size");
        assert_eq!(best(&[format(640, 480, YUYV, 60), format(640, 480, YUYV, 30)]).unwrap().frame_rate(), 30);
        assert_eq!(best(&[format(640, 480, GRAY, 30), format(320, 240, YUYV, 15)]).unwrap().format(), YUYV);
        assert_eq!(best(&[webcam[5]]), Some(webcam[5]), "a camera with one format has a best one");
        assert_eq!(best(&[]), None);
    }

    #[test]
    fn the_newest_picture_wins_and_the_count_is_exact() {
        let mailbox = Mailbox::default();
        let mut mine = Packed::default();
        for time in 1..=5 {
            let mut theirs = Packed { time: Duration::from_secs(time), ..Packed::default() };
            mailbox.put(&mut theirs);
        }
        let until = Instant::now() + Duration::from_millis(20);
        let stop = Shutdown::new();
        assert_eq!(mailbox.take(&mut mine, until, &stop), Ok(4));
        assert_eq!(mine.time, Duration::from_secs(5));
        assert_eq!(mailbox.take(&mut mine, until, &stop), Err(Missed::Silent));
        mailbox.put(&mut Packed::default());
        mailbox.lock().failed = Some("ENODEV".into());
        assert_eq!(mailbox.take(&mut mine, until, &stop), Ok(0), "what came before the end is still given");
        assert_eq!(mailbox.take(&mut mine, until, &stop), Err(Missed::Failed("ENODEV".into())));
    }

    #[test]
    fn who_stops_waits_for_no_picture() {
        let stop = Shutdown::new();
        stop.set();
        let until = Instant::now() + Duration::from_secs(5);
        assert_eq!(Mailbox::default().take(&mut Packed::default(), until, &stop), Err(Missed::Stopped));
    }

    #[test]
    fn a_camera_that_is_not_there_may_come() {
        let error = Camera::open(Path::new("/dev/video97"), &Options::default(), &Shutdown::new()).err().unwrap();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.to_string().starts_with("usb:/dev/video97 is not there; "), "{error}");
        let error = Camera::open(Path::new("/dev/null"), &Options::default(), &Shutdown::new()).err().unwrap();
        assert_eq!((error.kind(), error.to_string().contains("is no camera")), (Kind::Config, true), "{error}");
    }
}
